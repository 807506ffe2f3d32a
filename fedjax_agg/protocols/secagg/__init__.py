"""SecAgg and SecAgg+: what a client holds, what it does, what the server does."""

from fedjax_agg.protocols.secagg._keys import RULES as RULES
from fedjax_agg.protocols.secagg._keys import Client as Client
from fedjax_agg.protocols.secagg._keys import Keys as Keys
from fedjax_agg.protocols.secagg.secagg import SecAgg as SecAgg
