"""Lagrange coding: a vector as the values of polynomials, and sums of vectors from sums of values.

A vector is cut into U - T blocks; with T random blocks they are the values of one polynomial of
degree U - 1 (for each coordinate of a block) at the points alpha_1 ... alpha_U. Client j is given
its value at beta_j. Any U values determine all blocks, and any T values, whatever their holders
compute, are independent of the first U - T blocks. Values of several vectors add up to the values
of their sum: that is what one-shot recovery is made of (So et al., MLSys'22, section 3; Yu et al.,
"Lagrange coded computing", AISTATS'19).

    beta_j = j, 1 <= j <= N          alpha_k = N + k, 1 <= k <= U          in GF(2^31 - 1)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _xla
from fedjax_agg.arithmetic import m31

# So that the points of clients and of blocks are together numbers of 16 bits.
MAX_CLIENTS = 2**15 - 1


def client_points(num_clients: int) -> np.ndarray:
    """beta_1 to beta_N: uint32[N].

    Example:
        >>> client_points(3).tolist()
        [1, 2, 3]
    """
    return np.arange(1, num_clients + 1, dtype=np.uint32)


def data_points(num_clients: int, count: int) -> np.ndarray:
    """alpha_1 to alpha_count: uint32[count].

    Example:
        >>> data_points(3, 2).tolist()
        [4, 5]
    """
    return np.arange(num_clients + 1, num_clients + count + 1, dtype=np.uint32)


@jax.jit
def weights(at: jax.Array, nodes: jax.Array, present: jax.Array) -> jax.Array:
    """What turns values at nodes into the values of their polynomial elsewhere.

    For every polynomial g of smaller degree than there are nodes present, and x = at[r],

        g(x) = sum_j w_rj g(x_j),    w_rj = prod_{l != j} (x - x_l) / (x_j - x_l).

    All present nodes are used, not a choice of them: from any number of them that is larger than
    the degree follow the same values.

    Args:
        at: uint32[r], field elements, of which none is a node.
        nodes: uint32[m], field elements, all different.
        present: bool[m], which nodes have a value.

    Returns:
        uint32[r, m], field elements; 0 where absent.

    Example:
        From the values at 1 and 2 of a line: its value at 3 is twice the second less the first.

        >>> import jax.numpy as jnp
        >>> found = weights(jnp.array([3], jnp.uint32), jnp.array([1, 2], jnp.uint32),
        ...                 jnp.ones(2, bool))
        >>> found.tolist() == [[m31.PRIME - 1, 2]]
        True
    """
    # prod_l (x - x_l), over the present x_l != x, at every x of both kinds.
    points = jnp.concatenate([at, nodes])

    def times(index, product):
        node = lax.dynamic_index_in_dim(nodes, index, keepdims=False)
        here = lax.dynamic_index_in_dim(present, index, keepdims=False)
        factor = m31.subtract(points, jnp.broadcast_to(node, points.shape))
        counts = here & (factor != np.uint32(0))
        return m31.multiply(product, jnp.where(counts, factor, np.uint32(1)))

    ones = _xla.varying_with(jnp.ones(points.shape, jnp.uint32), points)
    products = _xla.client_loop(nodes.shape[0], times, ones)
    numerators, denominators = products[: at.shape[0]], products[at.shape[0] :]
    apart = m31.subtract(*jnp.broadcast_arrays(at[:, None], nodes[None]))
    quotients = m31.inverse(m31.multiply(apart, jnp.broadcast_to(denominators, apart.shape)))
    found = m31.multiply(jnp.broadcast_to(numerators[:, None], apart.shape), quotients)
    return jnp.where(present[None], found, np.uint32(0))


def encode(data: jax.Array, noise: jax.Array, num_clients: int) -> jax.Array:
    """The coded vector for every client.

    Args:
        data: uint32[U - T, L], field elements: the blocks of the vector.
        noise: uint32[T, L], uniform field elements, used once.
        num_clients: N, at least U; static.

    Returns:
        uint32[N, L], field elements; row j - 1 is for client j.

    Formal Guarantees:
        Any T rows are independent of ``data``: the T x T block of their weights on the noise is a
        generalised Vandermonde matrix of different points, so it is invertible.

    Example:
        Two blocks of one element and one of noise, for four clients (vector of client 1):

        >>> import jax.numpy as jnp
        >>> data = jnp.array([[10, 20], [30, 40]], jnp.uint32)
        >>> encode(data, jnp.array([[11, 12]], jnp.uint32), 4)[0].tolist()
        [2147483187, 2147483107]
    """
    blocks = jnp.concatenate([data, noise])
    nodes = jnp.asarray(data_points(num_clients, blocks.shape[0]))
    everything = jnp.ones(nodes.shape, jnp.bool_)
    return m31.matmul(weights(jnp.asarray(client_points(num_clients)), nodes, everything), blocks)


def decode(values: jax.Array, present: jax.Array, num_blocks: int) -> jax.Array:
    """The blocks whose coded vectors, or whose sums of coded vectors, these are.

    Args:
        values: uint32[N, L], field elements; absent rows are ignored, whatever they hold.
        present: bool[N], which clients gave one: U of them or more, or the result is arbitrary.
        num_blocks: U - T; static.

    Returns:
        uint32[U - T, L], field elements.

    Example:
        >>> import jax.numpy as jnp
        >>> data = jnp.array([[10, 20], [30, 40]], jnp.uint32)
        >>> values = encode(data, jnp.array([[11, 12]], jnp.uint32), 4)
        >>> decode(values, jnp.array([True, False, True, True]), 2).tolist()
        [[10, 20], [30, 40]]
    """
    n = values.shape[0]
    at, nodes = jnp.asarray(data_points(n, num_blocks)), jnp.asarray(client_points(n))
    known = jnp.where(present[:, None], m31.reduce(values), np.uint32(0))
    return m31.matmul(weights(at, nodes, present), known)
