"""What words are elements of: ``Ring``, integers modulo a power of two, or ``M31``, a prime."""

from fedjax_agg.arithmetic import m31 as m31
from fedjax_agg.arithmetic.prime_group import M31 as M31
from fedjax_agg.arithmetic.ring import Ring as Ring

# What the words of a protocol may be elements of.
Group = Ring | M31
