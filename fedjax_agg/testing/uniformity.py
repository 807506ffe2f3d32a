"""Statistics of words that should be uniform, in standard errors, and words that occur twice."""

from statistics import NormalDist

import numpy as np

# What one call of ``check_protocol`` may reject of a right protocol, over all of its statistics.
FALSE_ALARM = 1e-6
# So many bits are equal by chance in none of the pairs that fit into memory.
_WINDOW_BITS = 128


def limit(tests: int) -> float:
    """The standard errors that one of so many uniform statistics exceeds once in a million runs.

    By Bonferroni, so it holds however the statistics depend on each other.

    Example:
        >>> round(limit(1), 2), round(limit(1000), 2)
        (4.89, 6.11)
    """
    return -NormalDist().inv_cdf(FALSE_ALARM / tests / 2)


def byte_errors(words: np.ndarray, bits: int) -> np.ndarray:
    """How far each byte of uniform words is from uniform: chi-square, in standard errors.

    Args:
        words: unsigned integers of any shape, at least a thousand.
        bits: how many low bits of each are used; the last byte may be narrower.

    Returns:
        float64[ceil(bits / 8)], normal by Wilson and Hilferty for uniform words; positive where
        some values are too frequent, negative where all are too equally frequent.

    Example:
        >>> words = np.random.default_rng(0).integers(2**32, size=4096, dtype=np.uint32)
        >>> (np.abs(byte_errors(words, 32)) < 4).tolist()
        [True, True, True, True]
        >>> (np.abs(byte_errors(words & 0xFFFF00FF, 32)) < 4).tolist()
        [True, False, True, True]
    """
    errors = []
    for low in range(0, bits, 8):
        bins = 2 ** min(8, bits - low)
        values = (np.ravel(words) >> np.uint32(low)) & np.uint32(bins - 1)
        counts, expected = np.bincount(values, minlength=bins), values.size / bins
        ratio = np.sum((counts - expected) ** 2) / expected / (bins - 1)
        spread = 2 / 9 / (bins - 1)
        errors.append((np.cbrt(ratio) - 1 + spread) / np.sqrt(spread))
    return np.array(errors)


def repeated(rows: np.ndarray, bits: int) -> tuple[int, int]:
    """Cuts rows into stretches of 128 bits: how many occurred before, anywhere, and of how many.

    Uniform words of 32 bits repeat one with a probability below (number of stretches)^2 / 2^129.

    Args:
        rows: unsigned integers, [rows, length].
        bits: how many low bits of each are used.

    Returns:
        The number of repetitions and that of stretches.

    Example:
        >>> words = np.random.default_rng(0).integers(2**32, size=(9, 16), dtype=np.uint32)
        >>> repeated(words, 32), repeated(np.concatenate([words, words[:1]]), 32)
        ((0, 36), (4, 40))
    """
    width = min(-(-_WINDOW_BITS // bits), rows.shape[1])
    whole = rows[:, : rows.shape[1] // width * width]
    stretches = np.ascontiguousarray(whole.reshape(-1, width))
    as_bytes = stretches.view(np.dtype((np.void, stretches.dtype.itemsize * width)))
    return len(stretches) - np.unique(as_bytes).size, len(stretches)
