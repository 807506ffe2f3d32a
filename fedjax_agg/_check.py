"""Eager validators and the table of what to do about each mistake.

Every static mistake raises before anything is traced, and its message has one form::

    argument=value must be requirement; remedy [tag]

The tag is stable: documentation and tests refer to it. Values that are traced pass; what they do
when they are out of range is part of the docstring of whoever takes them.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

REMEDIES = {
    "group-type": "pass Ring(32), or the ring of a plan: plan_round(...).group",
    "ring-bits": "a word is a uint32, so choose at most 32 bits; plan_round(...) finds the "
    "smallest ring that holds the sum",
    "key-shape": "a key is 256 bits as uint32[8]: root_seed(), fixed_seed(0) or a key derived "
    "from one",
    "nonce-shape": "a nonce is 96 bits as uint32[3]",
    "bytes": "np.frombuffer(data, np.uint8) makes an array of bytes, and jax.vmap takes many",
    "byte-order": "ChaCha20 is little-endian, SHA-256 big-endian",
    "words": "pad bytes to whole words of 4, and make words with words_from_bytes",
    "hkdf-length": "use the output as a cipher's key where more bytes are needed",
    "hkdf-prk": "derive it with hkdf_extract",
    "label": "use a constant of key_schedule such as PAIR_MASK",
    "identifier": "count from 0 or 1, and use jax.vmap for many",
    "context-hash": "hash the model with context_hash, or other bytes with sha256",
    "seal-keys": "derive them with key_schedule.derive_keys, or call seal and open_sealed",
    "tag-shape": "pass on the Sealed message as it came",
    "message-shape": "flatten the message to words, and use jax.vmap for many",
    "coefficients-shape": "give one uint32 coefficient for every key, such as 1 and 2**32 - 1",
    "keystream-length": "ask for a positive number of 32-bit words, or 0 for none",
    "keystream-start": "begin at a multiple of 16 words, the length of a ChaCha20 block",
    "keystream-counter": "RFC 8439 counts blocks of 16 words in 32 bits: use another nonce for "
    "what lies beyond",
    "seed": "an integer or a jax.random key holds at most 64 bits; pass root_seed(), or "
    "fixed_seed(0) where a predictable seed is meant",
    "fixed-seed": "count experiments from fixed_seed(0), or pass root_seed() itself",
    "num-clients": "the sum over one client is that client's update; take at least two and at "
    "most 65535",
    "round-id": "count rounds from 0; after 2**32 - 1 rounds start again from a new seed",
    "session-type": "make one with simulated_session(root_seed(), num_clients=n, round_id=r)",
    "codec-type": "pass an instance such as FixedPoint(clip=1.0)",
    "protocol-type": "pass an instance such as Plain() or SecAgg()",
    "update-dtype": "only floating-point leaves can be averaged; cast it, or take it out of the "
    "tree (jax.tree.map, flax.nnx.split)",
    "client-axis": "stack the clients' updates along axis 0 of every leaf, one row for each "
    "client of the session",
    "session-clients": "make the session and the transformation for the same number of clients",
    "session-rounds": "a session is of one round: use jax.vmap or jax.lax.scan over many",
    "update-structure": "give every client's update the structure and shapes of the parameters",
    "weights-shape": "give one weight for every client, in the order of the updates",
    "weights-dtype": "weights are integers from 0 to max_weight, or fractions in [0, 1] as floats",
    "weights-range": "integers go from 0 to max_weight and floats from 0 to 1: divide larger "
    "weights by their public maximum, or raise max_weight",
    "max-weight": "plan_round(..., max_weight=w) shows what fits a round",
    "weight-budget": "raise the ring's bits, or lower max_weight, max_levels or the number of "
    "clients; plan_round(...) shows what fits",
    "float-budget": "float32 cannot round a larger number to the grid: lower max_levels "
    "(fewer bits) or max_weight",
    "participation-shape": "give bool[num_clients]: True where the client's upload arrived",
    "participation-dtype": "give booleans, for example jnp.arange(n) != 3",
    "participation-monotone": "who is gone stays gone: Participation.until(stage, alive) makes "
    "the rows",
    "stage": "name the stage whose message is the first that does not arrive",
    "drop-rate": "give the part of the clients that is lost, for example 0.1 for one in ten",
    "client-id": "clients are counted from 1, as in session.client_ids",
    "clip": "choose the largest norm that an update may keep, for example clip=1.0",
    "levels": "choose the number of grid steps in one clip, for example levels=2**15",
    "levels-budget": "raise max_levels to at least levels, or lower levels: coordinates beyond "
    "max_levels saturate",
    "max-levels": "a client's word must stay below 2**23 to be rounded in float32; choose for "
    "example max_levels=2**15",
    "norm": "use 'l2' to clip the norm of the whole update, 'linf' to clip each coordinate",
    "rounding": "use 'stochastic' (unbiased) or 'nearest' (half the worst-case error)",
    "plan-size": "pass a pytree of parameters or a positive number of them",
    "plan-bits": "choose the resolution of one client's word, for example bits=16",
    "plan-ring": "take fewer bits, a smaller max_weight or fewer clients",
    "graph-clients": "a graph joins at least two clients, and an index is an int32",
    "degree": "the complete graph is degree = num_clients - 1, and an odd degree needs an even "
    "number of clients",
    "graph-order": "pass permutation(seed, num_clients), or jnp.arange(num_clients) for the "
    "complete graph",
    "graph-keys": "stack the clients' public keys, one row for each client",
    "rate": "give the fraction of clients, for example 0.1 for one in ten",
    "adversary": "a server that may show clients different survivors is semi-malicious",
    "security": "40 allows a privacy failure with a probability of 2^-40",
    "failure": "20 allows a lost round with a probability of 2^-20",
    "consistency": "True has clients attest the survivors before they answer, False trusts the "
    "server to show everybody the same",
    "graph-rates": "no threshold is above those who may collude and below those who are left: "
    "assume fewer of either",
    "num-holders": "a share point is a slot plus one, in 16 bits: take 1 to 65535 holders",
    "threshold": "so many holders of shares, in SecAgg the neighbours of a client, recover a "
    "secret: choose 1 to their number",
    "min-survivors": "no client helps to unmask the sum of fewer: choose 2 to the size of the "
    "cohort",
    "refuse-own-keys": "the list of the server lacks this client's keys, has others, or has them "
    "twice: share nothing, start a new round",
    "refuse-invalid-key": "the list of the server gives a neighbour a public key of zeros: share "
    "nothing, start a new round without that neighbour",
    "refuse-graph": "the server named other neighbours than follow from the list of keys: share "
    "nothing, start a new round",
    "refuse-few-keys": "fewer neighbours than the threshold have advertised keys: share nothing, "
    "start a new round with more clients",
    "refuse-late-share": "the server relayed a share of a neighbour without keys: answer nothing, "
    "start a new round",
    "refuse-sealed-share": "a neighbour or the server changed a sealed share: answer nothing, "
    "start a new round",
    "refuse-few-shares": "fewer neighbours than the threshold have dealt shares: upload nothing, "
    "start a new round with more clients",
    "refuse-declared-lost": "the server names this client as lost while it is there: answer "
    "nothing, start a new round",
    "refuse-unknown-survivor": "the server names a survivor who dealt this client no share: "
    "answer nothing, start a new round",
    "refuse-few-survivors": "the server names fewer survivors than may be unmasked: answer "
    "nothing, start a new round with more clients",
    "refuse-attested-already": "the server asks for a second word on the survivors of one round: "
    "answer nothing, start a new round",
    "refuse-other-set": "the server asks to unmask other survivors than this client has attested: "
    "answer nothing, start a new round",
    "refuse-few-attestations": "fewer neighbours than the threshold attest these survivors, so "
    "the server may have named others to them: answer nothing, start a new round",
    "refuse-answered-already": "a second answer in one round can open an update: answer nothing, "
    "start a new round",
    "num-chunks": "CHUNKS for each secret of 256 bits",
    "chunks-shape": "to_chunks(secret) makes CHUNKS of one secret; concatenate those of several",
    "polynomial-shape": "draw them with draw_coefficients(key, threshold, num_chunks)",
    "shares-shape": "give one row of uint32 shares for every slot, anything where none arrived",
    "present-shape": "give one boolean for every slot: True where the share arrived",
    "plan-type": "pass a plan: plan_round(...)",
    "cost-protocols": "list the protocols to compare: [Plain(), plan.protocol()]",
    "update-session": "call update(grads, state, params, session=simulated_session(...))",
    "optax-order": "give the gradients of all clients, one row each; if optax.MultiSteps is "
    "around secure_aggregate, put it after: optax.chain(secure_aggregate(...), "
    "optax.MultiSteps(...))",
    "optax-privacy": "per-example clipping and noise belong inside the client, before "
    "aggregation: apply differentially_private_aggregate to each client's own gradients",
    "inner-type": "pass a rule such as optax.adam(1e-3), or the gradient_transformation() of "
    "an optax.MultiSteps",
    "aggregate-type": "pass secure_aggregate(codec, protocol, num_clients=n)",
}


# The normal numbers of float32, in which a round computes.
_SMALLEST, _LARGEST = (float(limit) for limit in (np.finfo("f4").tiny, np.finfo("f4").max))


def error(
    tag: str, subject: str, requirement: str, kind: type[Exception] = ValueError
) -> Exception:
    """The exception ``subject must be requirement; remedy [tag]``, to be raised by the caller."""
    return kind(f"{subject} must be {requirement}; {REMEDIES[tag]} [{tag}]")


def concrete(value: Any) -> np.ndarray | None:
    """``value`` as a NumPy array, or None where it is traced and has no value yet."""
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None
    except (TypeError, ValueError):  # Keys and ragged sequences are no arrays of numbers.
        return np.array(None)


def shown(value: Any) -> str:
    """A value as a message may show it: numbers and names, never what could hold a key."""
    shape = getattr(value, "shape", None)
    if isinstance(value, type):
        return f"type[{value.__name__}]"
    if shape is not None:
        numbers = concrete(value)
        if numbers is not None and shape == () and numbers.dtype != object:
            return repr(numbers.item())
        return f"{'traced ' if numbers is None else ''}{shown_type(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)
    return f"type {type(value).__name__}"


def shown_type(value: Any) -> str:
    """The dtype and shape of an array, or the type of anything else: the value may be a key."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ if shape is None else f"{dtype}{[*shape]}"


def _named(argument: dict[str, Any]) -> tuple[str, Any]:
    ((name, value),) = argument.items()
    return name, value


def integer_in(tag: str, low: int, high: int, /, **argument: Any) -> int:
    """Requires a Python or NumPy integer in [low, high] and returns it."""
    name, value = _named(argument)
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        wanted = "a static integer" if concrete(value) is None else "an integer"
        raise error(tag, f"{name}={shown(value)}", f"{wanted} from {low} to {high}")
    # NumPy's integers have a width, in which a proof about products would itself wrap.
    return int(value)


def positive(tag: str, /, **argument: Any) -> None:
    """Requires numbers that are finite and positive in float32; traced ones pass."""
    name, value = _named(argument)
    numbers = concrete(value)
    if numbers is None or (
        isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
        and np.issubdtype(numbers.dtype, np.number)
        and np.isrealobj(numbers)
        and (numbers >= _SMALLEST).all()
        and (numbers <= _LARGEST).all()
    ):
        return
    raise error(tag, f"{name}={shown(value)}", "a positive number, finite in float32")


def one_of(tag: str, options: Collection[str], /, **argument: Any) -> None:
    """Requires one of a few strings."""
    name, value = _named(argument)
    if not isinstance(value, str) or value not in options:
        listed = " or ".join(repr(option) for option in options)
        raise error(tag, f"{name}={shown(value)}", listed)


def instance(tag: str, types: type | tuple[type, ...], /, **argument: Any) -> None:
    """Requires an instance of a type; the message shows the type, never the value."""
    name, value = _named(argument)
    if not isinstance(value, types):
        listed = types if isinstance(types, tuple) else (types,)
        wanted = " or ".join(t.__name__ for t in listed)
        found = shown(value) if isinstance(value, type) else type(value).__name__
        raise error(tag, f"{name} of type {found}", f"a {wanted}", TypeError)


def array(tag: str, dtype: Any, shape: tuple[int | None, ...], /, **argument: Any) -> None:
    """Requires an array of a dtype and of a shape in which None stands for any length."""
    name, value = _named(argument)
    found_shape, found_dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if (
        found_shape is None
        or found_dtype != dtype
        or len(found_shape) != len(shape)
        or any(want is not None and want != got for want, got in zip(shape, found_shape))
    ):
        wanted = ",".join("n" if size is None else str(size) for size in shape)
        raise error(tag, f"{name} of type {shown_type(value)}", f"{np.dtype(dtype).name}[{wanted}]")


def words(tag: str, shape: tuple[int | None, ...], /, **argument: Any) -> None:
    """Requires a uint32 array of a shape in which None stands for any length."""
    array(tag, np.uint32, shape, **argument)


def shape(tag: str, wanted: tuple[int, ...], /, **argument: Any) -> None:
    """Requires an array of exactly this shape."""
    name, value = _named(argument)
    found = getattr(value, "shape", None)
    if found is None:
        raise error(tag, f"{name} of type {type(value).__name__}", f"an array of shape {wanted}")
    if found != wanted:
        raise error(tag, f"the shape {found} of {name}", f"{wanted}")


def first_leaf(name: str, tree: Any, wrong: Callable[[Any], bool]) -> tuple[str, Any] | None:
    """The path, from the argument's name on, and value of the first ``wrong`` leaf, or None."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if wrong(leaf):
            return name + jax.tree_util.keystr(path), leaf
    return None
