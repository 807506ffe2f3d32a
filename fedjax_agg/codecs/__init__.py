"""float -> float: what an update becomes before rounding, and back, side by side."""

from fedjax_agg.codecs.beside import Beside as Beside
from fedjax_agg.codecs.codec import Codec as Codec
from fedjax_agg.codecs.codec import register_codec as register_codec
from fedjax_agg.codecs.fixed_point import FixedPoint as FixedPoint
