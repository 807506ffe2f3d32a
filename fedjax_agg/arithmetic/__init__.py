"""The integers that words live in: ``Ring``, the integers modulo a power of two."""

from fedjax_agg.arithmetic.ring import Ring as Ring
