"""LightSecAgg: what a client holds and does, and what the server does."""

from fedjax_agg.protocols.light_secagg._client import RULES as RULES
from fedjax_agg.protocols.light_secagg._client import CodedClient as CodedClient
from fedjax_agg.protocols.light_secagg._client import CodedKeys as CodedKeys
from fedjax_agg.protocols.light_secagg.light_secagg import LightSecAgg as LightSecAgg
