"""A tag that adds up as words do, so that who has the key can check a sum that somebody else made.

The key is a string s of fair bits. A tag has 64 words, each the sum of about half of the vector's:

    tag_c(x) = sum over j of s_(j+c) x_j    modulo 2^m,    0 <= c < 64

Tags are linear, tag(x) + tag(x') = tag(x + x'), in the integers modulo any 2^m, m <= 32, and so in
the ring of a round, in which they travel as more words of the same masked vector.

**Why it cannot be forged.** Whoever adds e to a sum has to add tag(e) to its tag. Let e not be zero
modulo 2^m: then e = 2^u e', u < m, and some e'_j is odd. Bit u of tag_c(e) is the parity of the
sum of s_(j+c) over all j whose e'_j is odd. With the last such j, s_(j+c) is in that sum and in
none of a smaller c; so these 64 bits are independent and fair, and a guess is right with
probability 2^-64 at most.

**Why not a field.** The usual tag is an inner product with a key in a prime field (Agrawal and
Boneh 2009), whose sums are no sums of a ring of 2^b elements. Field elements, or limbs of them,
that are added as integers would tell by their carries some bits of single clients' words to
whoever has the key. A product with a key in the ring, on the other hand, cannot tell an e of
2^(m-1) from zero half of the time. Bits have neither fault, for 64 words.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_agg import _check, _xla
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.chacha20_block import short_keystream

# A forged sum passes with probability 2^-TAG_WORDS.
TAG_WORDS = 64
_BITS = 32
# Rows of 32 words in a block. A loop over blocks, because XLA stores what a loop reads: otherwise
# it takes padding and rounding into the sums, where they cost half as much time again.
_ROWS = 256


def tag(key: jax.Array, words: jax.Array) -> jax.Array:
    """The tag of a vector: ``tag(key, x) + tag(key, y) == tag(key, x + y)``.

    Hashing with a Toeplitz matrix of bits (Mansour, Nisan and Tiwari 1990; Krawczyk 1994), but of
    integers modulo 2^m where those hash bits. The matrix is a ChaCha20 keystream, each word of
    which is read from its lowest bit on.

    Args:
        key: uint32[8], of one sum: whoever sees a tag learns of the key.
        words: uint32[k], modulo 2^m for any m <= 32.

    Returns:
        uint32[64], modulo the same 2^m.

    Raises:
        ValueError: an argument of another shape or type.

    Formal Guarantees:
        To somebody without the key, who sees no tag in the clear, any change of a sum modulo 2^m
        is accepted with probability at most 2^-64 an attempt, as far as ChaCha20 is a
        pseudorandom function. **Not given**: anything against who has the key, and who can make
        any tag; secrecy of the words, which a tag in the clear tells about.

    Example:
        >>> import jax.numpy as jnp
        >>> key, x = jnp.zeros(8, jnp.uint32), jnp.array([5, 6, 7], jnp.uint32)
        >>> tag(key, x).shape, tag(key, x)[:4].tolist()
        ((64,), [13, 11, 12, 13])
        >>> bool((tag(key, 2 * x) == 2 * tag(key, x)).all())
        True
    """
    _check.words("key-shape", (8,), key=key)
    _check.words("message-shape", (None,), words=words)
    rows = min(max(1, -(-words.shape[0] // _BITS)), _ROWS)
    blocks = max(1, -(-words.shape[0] // (rows * _BITS)))
    stream = short_keystream(key, key_schedule.segment_nonce(0), blocks * rows + 2)
    padded = jnp.pad(words, (0, blocks * rows * _BITS - words.shape[0]))
    padded = padded.reshape(blocks, rows, _BITS)
    first = jnp.arange(_BITS, dtype=jnp.uint32)[None]

    def add_block(i, sums):
        x = lax.dynamic_index_in_dim(padded, i, keepdims=False)
        bits = lax.dynamic_slice_in_dim(stream, i * rows, rows + 2)

        def window(c):
            """The 32 bits of the key from bit 32 c of each word's own."""
            low, high = bits[c : c + rows, None], bits[c + 1 : c + 1 + rows, None]
            return (low >> first) | (high << (np.uint32(_BITS - 1) - first) << np.uint32(1))

        terms = [
            x * ((word >> np.uint32(c)) & np.uint32(1))
            for word in (window(0), window(1))
            for c in range(_BITS)
        ]
        # One variadic reduce over the leading axis: all words of a tag in one pass, and no term
        # is stored.
        found = lax.reduce(
            terms,
            [np.uint32(0)] * TAG_WORDS,
            lambda a, b: [x + y for x, y in zip(a, b)],
            (0,),
        )
        return sums + jnp.sum(jnp.stack(found), axis=1, dtype=jnp.uint32)

    nothing = _xla.varying_with(jnp.zeros(TAG_WORDS, jnp.uint32), padded, stream)
    return _xla.client_loop(blocks, add_block, nothing)
