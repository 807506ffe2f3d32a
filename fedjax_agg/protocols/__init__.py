"""How words are hidden from the server and their sum recovered: one protocol, one file."""

from fedjax_agg.protocols.light_secagg import LightSecAgg as LightSecAgg
from fedjax_agg.protocols.plain import Plain as Plain
from fedjax_agg.protocols.protocol import Cost as Cost
from fedjax_agg.protocols.protocol import Exchange as Exchange
from fedjax_agg.protocols.protocol import Protocol as Protocol
from fedjax_agg.protocols.secagg import SecAgg as SecAgg
