"""The group of 2^31 - 1 elements against Python's integers."""

import jax.numpy as jnp
import numpy as np

from fedjax_agg.arithmetic import M31

P, GROUP = 2**31 - 1, M31()
CORNERS = [0, 1, 2, 2**16 - 1, 2**16, 2**30 - 1, 2**30, P - 2, P - 1]


def elements(seed=0):
    draws = np.random.default_rng(seed).integers(0, P, 1000)
    return np.concatenate([CORNERS, draws]).astype(np.uint32)


def test_arithmetic_equals_python():
    a, b = elements(), elements()[::-1]
    factors = np.random.default_rng(1).integers(0, 2**32, a.size, dtype=np.uint32)
    x, y, f = (values.astype(object) for values in (a, b, factors))
    a, b = jnp.asarray(a), jnp.asarray(b)
    assert GROUP.add(a, b).tolist() == ((x + y) % P).tolist()
    assert GROUP.negate(a).tolist() == (-x % P).tolist()
    assert GROUP.scale(a, factors).tolist() == (x * f % P).tolist()
    table = jnp.stack([a, b])
    assert GROUP.sum(table).tolist() == ((x + y) % P).tolist()
    assert GROUP.sum(table, axis=1).tolist() == [int(x.sum()) % P, int(y.sum()) % P]


def test_lift_inverts_wrap_on_its_range():
    half = 2**30 - 1
    assert GROUP.largest == half
    integers = np.array([0, 1, -1, half, -half, 12345, -54321], np.int32)
    words = GROUP.wrap(jnp.asarray(integers))
    assert words.tolist() == [int(i) % P for i in integers]
    assert GROUP.centre_lift(words).tolist() == integers.tolist()
    # One past either end comes back at the other.
    beyond = GROUP.wrap(jnp.asarray([half + 1, -half - 1], jnp.int32))
    assert GROUP.centre_lift(beyond).tolist() == [-half, half]


def test_sums_of_limbs_are_limbs_of_sums():
    """As many summands as may be added as words, all of them the largest."""
    largest, count = np.uint32(P - 1), 2**16
    limbs = [np.asarray(limb) for limb in GROUP.limbs(jnp.asarray([largest, 5], jnp.uint32))]
    with np.errstate(over="raise"):
        sums = [(limb.astype(np.int64) * count) for limb in limbs]
    assert max(int(s.max()) for s in sums) < 2**32
    total = GROUP.from_limbs(tuple(jnp.asarray(s.astype(np.uint32)) for s in sums))
    assert total.tolist() == [int(largest) * count % P, 5 * count % P]
    # The control: added as words, two elements and one more wrap.
    assert 3 * int(largest) >= 2**32
