"""The conformance kit: the laws of protocols and codecs as assertions, for whoever writes one.

``check_protocol`` and ``check_codec`` raise ``AssertionError`` with one message that says which law
is broken, where and by how much; no message shows a key, a seed or a word. Nothing in the package
imports this module.
"""

from fedjax_agg.testing.codecs import check_codec as check_codec
from fedjax_agg.testing.protocols import Coverage as Coverage
from fedjax_agg.testing.protocols import check_protocol as check_protocol
