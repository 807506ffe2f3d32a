"""What a protocol hides: uniform messages, masks that never repeat, keys that are used in full."""

import jax
import numpy as np

from fedjax_agg.testing import uniformity
from fedjax_agg.testing.programs import fail
from fedjax_agg.testing.rounds import Rounds, ServerView, Setting

_SESSIONS = 512
_UNIFORM = "uniformity"


def check_hiding(setting: Setting, seen: ServerView, revealed: tuple[str, ...]) -> np.ndarray:
    """Asserts that messages look uniform and depend on every bit of the keys they are made of.

    Args:
        setting: the protocol and its rounds.
        seen: what runs them.
        revealed: the stages whose messages need not be uniform.

    Returns:
        The masks of all rounds that were run for it, uint32[masks, length + 1].

    Example:
        >>> import fedjax_agg as fa
        >>> setting = Setting(fa.Plain(), 3, 31, np.random.default_rng(0))
        >>> check_hiding(setting, ServerView(setting), ())
        Traceback (most recent call last):
        AssertionError: Plain breaks uniformity: byte 3 of upload.words is 950 standard errors \
from uniform, where 5.2 are allowed
    """
    nobody_lost = np.full((_SESSIONS, setting.n), len(setting.stages))
    rounds = setting.draw(nobody_lost)
    server, public = seen.of(rounds)
    _check_messages(setting, server, public, revealed)
    masks = masks_of(setting, rounds, server)
    if setting.n > 2:
        # Where two clients have one mask and no other, one is the negative of the other.
        masks = np.concatenate([masks, setting.difference(np.zeros_like(masks), masks)])
    check_repeats(setting, masks, "masks and their negatives", setting.protocol.group.bits)
    _check_keys(setting, seen, revealed)
    return masks[: _SESSIONS * setting.n]


def masks_of(setting: Setting, rounds: Rounds, server: dict) -> np.ndarray:
    """uint32[masks, length + 1]: what was added to the words of every client that uploaded.

    Example:
        >>> import fedjax_agg as fa
        >>> setting = Setting(fa.Plain(), 3, 31, np.random.default_rng(0))
        >>> rounds = setting.draw([[1, 1, 0]])
        >>> server, _ = ServerView(setting).of(rounds)
        >>> masks_of(setting, rounds, server).any(axis=1).tolist()
        [False, False]
    """
    sent = server["upload"].sent
    words = setting.words(setting.integers(rounds)[sent])
    return setting.difference(server["upload"].outboxes.words[sent], words)


def check_repeats(setting: Setting, rows: np.ndarray, name: str, bits: int) -> None:
    """Asserts that no 128 bits of the rows occur twice.

    Example:
        >>> import fedjax_agg as fa
        >>> setting = Setting(fa.Plain(), 3, 31, np.random.default_rng(0))
        >>> check_repeats(setting, np.ones((2, 8), np.uint32), "ones", bits=32)
        Traceback (most recent call last):
        AssertionError: Plain breaks uniformity: 3 of 4 stretches of 128 bits occur again among \
2 rows of ones
    """
    twice, stretches = uniformity.repeated(rows, bits)
    if twice:
        text = f"{twice} of {stretches} stretches of 128 bits occur again among {len(rows)} rows"
        fail(setting.protocol, _UNIFORM, f"{text} of {name}")


def _uniform_words(setting, server, public, revealed) -> dict[str, tuple[np.ndarray, int]]:
    """What is to look uniform, and its bits: unsigned integers in outboxes and on the board."""
    sent = {stage: mail.outboxes for stage, mail in server.items() if stage not in revealed}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path({**sent, "board": public.board}):
        if leaf.dtype.kind == "u":
            stage, inside = path[0].key, jax.tree_util.keystr(path[1:])
            in_group = stage == "upload"
            bits = setting.protocol.group.bits if in_group else 8 * leaf.dtype.itemsize
            found[stage + inside] = leaf, bits
    return found


def _check_messages(setting, server, public, revealed) -> None:
    errors = {}
    for name, (words, bits) in _uniform_words(setting, server, public, revealed).items():
        if np.any(words.astype(np.uint64) >> np.uint64(bits)):
            text = f"{name} holds words outside the group of {bits} bits"
            fail(setting.protocol, _UNIFORM, text)
        errors[name] = uniformity.byte_errors(words, bits)
        if not name.startswith("upload"):
            check_repeats(setting, words.reshape(len(words), -1), name, bits)
    bound = uniformity.limit(sum(found.size for found in errors.values()))
    for name, found in errors.items():
        worst = int(np.argmax(np.abs(found)))
        if abs(found[worst]) > bound:
            text = f"byte {worst} of {name} is {found[worst]:.0f} standard errors from uniform"
            fail(setting.protocol, _UNIFORM, f"{text}, where {bound:.1f} are allowed")


def _check_keys(setting: Setting, seen: ServerView, revealed: tuple[str, ...]) -> None:
    """What depends on a key depends on every bit of it, and an upload does on some key.

    In a round of everybody that goes for all messages: the keys of channels are in no upload.
    Other keys may serve only where a client is missing, so it goes for uploads again where the
    first client is lost, at each stage before them.
    """
    upload = setting.stages.index("upload")
    lost = np.full((1 + upload, setting.n), len(setting.stages))
    lost[1:, 0] = range(upload)
    if not _check_flips(setting, seen, lost[0], revealed):
        fail(setting.protocol, _UNIFORM, "no bit of any key of the session changes an upload")
    for pattern in lost[1:]:
        _check_flips(setting, seen, pattern, revealed, only="upload")


def _check_flips(setting, seen, lost, revealed, only="") -> bool:
    """Flips every bit of every root of a client's keys; whether any of them changed an upload."""
    client, rounds = setting.n // 2, setting.draw(lost[None])
    kinds = rounds.session.agreement.shape[2]
    roots = ["a client's secret", *(f"handle {kind} of the agreement" for kind in range(kinds))]
    rounds = jax.tree.map(lambda x: np.repeat(x, 1 + 256 * len(roots), axis=0), rounds)
    bit = np.arange(256)
    flips = np.zeros((256, 8), np.uint32)
    flips[bit, bit // 32] = np.uint32(1) << (bit % 32).astype(np.uint32)
    rounds.session.secrets[1:257, client] ^= flips
    for kind in range(kinds):
        begin = 257 + 256 * kind
        rounds.session.agreement[begin : begin + 256, :, kind] ^= flips[:, None]
    server, public = seen.of(rounds)
    words = _uniform_words(setting, server, public, revealed)
    words = {name: found for name, found in words.items() if name.startswith(only)}
    bound = uniformity.limit(256 * len(roots) * len(words) * len(setting.stages))
    masked = False
    for name, (values, bits) in words.items():
        of_client = values.shape[1:2] == (setting.n,)
        for i, root in enumerate(roots):
            # On a graph that depends on all keys, others may have new neighbours for another
            # secret: what shows is whether its own words are new.
            some = values[:, client] if of_client and i == 0 else values
            some = some.reshape(len(some), -1)
            changed = np.bitwise_count(some[1 + 256 * i :][:256] ^ some[0])
            # Of the words that depend on this root at all.
            changed = changed[:, np.any(changed, axis=0)]
            trials, count = changed.shape[1] * bits, np.sum(changed, axis=1, dtype=np.int64)
            good = np.sum(np.abs(2 * count - trials) <= bound * np.sqrt(trials))
            if good < 256:
                text = f"only {good} of the 256 bits of {root} change half of {name}"
                fail(setting.protocol, _UNIFORM, f"{text} {setting.lost(rounds.alive[0])}")
            masked |= name.startswith("upload") and trials > 0
    return masked
