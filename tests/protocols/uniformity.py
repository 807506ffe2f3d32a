"""The battery that masked uploads must pass, and that named mutants must fail.

Rows of words that should be independent and uniform go in, the statistics of every test come out:

* ``bytes``: chi-square of each of the four bytes of a row, 255 degrees of freedom;
* ``windows``: chi-square of ten neighbouring bits, at three places, over all rows, 1023 degrees;
* ``lags``: serial correlation of each row at lags 1 to 16, in standard errors;
* ``bits``: bias of each of the 32 bits of a row, in standard errors;
* ``pairs``: correlation of every two rows, in standard errors: clients, segments and rounds.

False alarms. Uniform words set off at least one test in ``SESSIONS`` runs with a probability of at
most ``FAMILY_ALPHA``, by Bonferroni over all tests of all runs, whatever their dependence. It is
half of the 1 % that is claimed: the other half covers the tails of the limits (chi-square and
normal), which at 16 counts a bin are up to twice too light for the chi-squares and too heavy for
the rest.

NumPy and SciPy only: nothing here can share a mistake with the library.
"""

import numpy as np
import scipy.stats

SESSIONS = 100
FAMILY_ALPHA = 0.005
LAGS = 16
WINDOWS = (0, 11, 22)

_DEGREES = {"bytes": 255, "windows": 1023}


def chi_square(values, bins):
    """Pearson's statistic of integers against the uniform law on ``range(bins)``."""
    values = np.ravel(values)
    expected = len(values) / bins
    counts = np.bincount(values, minlength=bins)
    assert len(counts) == bins
    return np.sum((counts - expected) ** 2) / expected


def statistics(rows):
    """The statistics of every test: uint32[rows, length] -> arrays by the name of the test."""
    rows = np.asarray(rows)
    assert rows.dtype == np.uint32
    count, length = rows.shape
    units = (rows.astype(np.float64) + 0.5) / 2.0**32 - 0.5  # variance 1 / 12
    chi_bytes = [[chi_square(row >> 8 * b & 255, 256) for b in range(4)] for row in rows]
    windows = [chi_square(rows >> low & 1023, 1024) for low in WINDOWS]
    lags = [
        12 * np.sum(units[:, lag:] * units[:, :-lag], axis=1) / np.sqrt(length - lag)
        for lag in range(1, LAGS + 1)
    ]
    ones = np.stack([np.sum(rows >> bit & 1, axis=1, dtype=np.int64) for bit in range(32)])
    gram = 12 * (units @ units.T) / np.sqrt(length)
    return {
        "bytes": np.array(chi_bytes),
        "windows": np.array(windows),
        "lags": np.abs(lags).T,
        "bits": np.abs(2 * ones - length).T / np.sqrt(length),
        "pairs": np.abs(gram[np.triu_indices(count, 1)]),
    }


def threshold(test, alpha):
    """The statistic that uniform words exceed with probability ``alpha``."""
    if test in _DEGREES:
        return scipy.stats.chi2.isf(alpha, _DEGREES[test])
    return scipy.stats.norm.isf(alpha / 2)


def exceeded(found, alpha):
    """How many statistics of each test lie beyond the threshold of ``alpha``."""
    return {test: int(np.sum(values > threshold(test, alpha))) for test, values in found.items()}


def alarms(found):
    """The names of the tests that reject their rows, at the level of the whole family."""
    tests = sum(values.size for values in found.values())
    counts = exceeded(found, FAMILY_ALPHA / SESSIONS / tests)
    return {test for test, count in counts.items() if count}


def rejected_by(rows):
    """The names of the tests that reject the rows."""
    return alarms(statistics(rows))
