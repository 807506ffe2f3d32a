"""What a protocol hides: uniform messages, masks that never repeat, keys that are used in full."""

import jax
import numpy as np

from fedjax_agg.testing import uniformity
from fedjax_agg.testing.programs import fail
from fedjax_agg.testing.rounds import Rounds, ServerView, Setting

_SESSIONS = 512
_UNIFORM = "uniformity"


def check_hiding(setting: Setting, seen: ServerView, revealed: tuple[str, ...]) -> np.ndarray:
    """Asserts that messages look uniform and that masks depend on every bit of the keys.

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
    _check_keys(setting, seen, setting.draw(nobody_lost[:1]))
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


def _check_messages(setting, server, public, revealed) -> None:
    """Whatever is made of unsigned integers, in an outbox or on the board, is uniform."""
    sent = {stage: mail.outboxes for stage, mail in server.items() if stage not in revealed}
    errors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path({**sent, "board": public.board}):
        if leaf.dtype.kind != "u":
            continue
        stage, inside = path[0].key, jax.tree_util.keystr(path[1:])
        upload = stage == "upload"
        bits = setting.protocol.group.bits if upload else 8 * leaf.dtype.itemsize
        if np.any(leaf.astype(np.uint64) >> np.uint64(bits)):
            text = f"{stage}{inside} holds words outside the group of {bits} bits"
            fail(setting.protocol, _UNIFORM, text)
        errors[stage + inside] = uniformity.byte_errors(leaf, bits)
        if not upload:
            check_repeats(setting, leaf.reshape(len(leaf), -1), stage + inside, bits)
    bound = uniformity.limit(sum(found.size for found in errors.values()))
    for name, found in errors.items():
        worst = int(np.argmax(np.abs(found)))
        if abs(found[worst]) > bound:
            text = f"byte {worst} of {name} is {found[worst]:.0f} standard errors from uniform"
            fail(setting.protocol, _UNIFORM, f"{text}, where {bound:.1f} are allowed")


def _check_keys(setting: Setting, seen: ServerView, rounds: Rounds) -> None:
    """Every bit of every key that masks are made of changes about half of a mask."""
    client, kinds = setting.n // 2, rounds.session.agreement.shape[2]
    roots = ["a client's secret", *(f"handle {kind} of the agreement" for kind in range(kinds))]
    rounds = jax.tree.map(lambda x: np.repeat(x, 1 + 256 * len(roots), axis=0), rounds)
    bit = np.arange(256)
    flips = np.zeros((256, 8), np.uint32)
    flips[bit, bit // 32] = np.uint32(1) << (bit % 32).astype(np.uint32)
    rounds.session.secrets[1:257, client] ^= flips
    for kind in range(kinds):
        begin = 257 + 256 * kind
        rounds.session.agreement[begin : begin + 256, :, kind] ^= flips[:, None]
    uploads = seen.of(rounds)[0]["upload"].outboxes.words[:, client]
    trials = uploads.shape[1] * setting.protocol.group.bits
    changed = np.sum(np.bitwise_count(uploads[1:] ^ uploads[0]), axis=1, dtype=np.int64)
    changed = changed.reshape(len(roots), 256)
    half = np.abs(2 * changed - trials) < uniformity.limit(changed.size) * np.sqrt(trials)
    if not np.any(changed):
        fail(setting.protocol, _UNIFORM, "no bit of any key of the session changes an upload")
    for root, number, good in zip(roots, changed, np.sum(half, axis=1)):
        if np.any(number) and good < 256:
            text = f"only {good} of the 256 bits of {root} change half of an upload"
            fail(setting.protocol, _UNIFORM, text)
