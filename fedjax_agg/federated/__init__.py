"""Federated algorithms as secure sums: pure ``init`` and ``step``, and a training run in one scan.

What a client sends, its metrics and its weight travel in one masked vector, so the server learns
weighted means over a round's survivors and nothing of one client.
"""

from fedjax_agg.federated.algorithm import Algorithm as Algorithm
from fedjax_agg.federated.algorithm import Metrics as Metrics
from fedjax_agg.federated.algorithm import Sent as Sent
from fedjax_agg.federated.algorithm import ServerState as ServerState
from fedjax_agg.federated.average import average_parameters as average_parameters
from fedjax_agg.federated.clients import ClientData as ClientData
from fedjax_agg.federated.clients import pad_clients as pad_clients
from fedjax_agg.federated.clients import sample_clients as sample_clients
from fedjax_agg.federated.fed_avg import FedAvg as FedAvg
from fedjax_agg.federated.fed_avg_m import FedAvgM as FedAvgM
from fedjax_agg.federated.fed_opt import FedAdagrad as FedAdagrad
from fedjax_agg.federated.fed_opt import FedAdam as FedAdam
from fedjax_agg.federated.fed_opt import FedOpt as FedOpt
from fedjax_agg.federated.fed_opt import FedYogi as FedYogi
from fedjax_agg.federated.fed_prox import FedProx as FedProx
from fedjax_agg.federated.fed_sgd import FedSGD as FedSGD
from fedjax_agg.federated.local import train_locally as train_locally
from fedjax_agg.federated.mime_lite import MimeLite as MimeLite
from fedjax_agg.federated.scaffold import Scaffold as Scaffold
from fedjax_agg.federated.scaffold import ScaffoldState as ScaffoldState
from fedjax_agg.federated.training import train as train
