"""What words are elements of: ``Ring``, integers modulo a power of two, and the field ``m31``."""

from fedjax_agg.arithmetic import m31 as m31
from fedjax_agg.arithmetic.ring import Ring as Ring
