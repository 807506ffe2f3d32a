"""The key schedule: its vectors, what must differ, and the separation of rounds and parties."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.chacha20 import keystream
from fedjax_agg.symmetric.key_schedule import PAIR_MASK, derive_key, derive_keys, segment_nonce

VECTORS = json.loads(
    (pathlib.Path(__file__).parents[1] / "vectors" / "key_schedule.json").read_text()
)
LABELS = {
    name: value
    for name, value in vars(key_schedule).items()
    if name.isupper() and isinstance(value, str)
}


def words(data):
    return jnp.asarray(np.frombuffer(bytes.fromhex(data), "<u4").astype(np.uint32))


def hexadecimal(key):
    return np.asarray(key).astype("<u4").tobytes().hex()


keystream_jit = jax.jit(keystream, static_argnums=2)
IKM, SALT = words(VECTORS["ikm"]), words(VECTORS["salt"])


def key_of(vector):
    context = vector.get("context_hash")
    return derive_key(
        IKM,
        vector["label"],
        salt=SALT,
        round_id=vector["round_id"],
        first=vector["first"],
        second=vector["second"],
        context_hash=context and np.frombuffer(bytes.fromhex(context), np.uint8),
    )


def pair_mask(round_id, first, second):
    return derive_key(IKM, PAIR_MASK, salt=SALT, round_id=round_id, first=first, second=second)


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda v: f"{v['label']}-{v['round_id']}")
def test_keys(vector):
    assert hexadecimal(key_of(vector)) == vector["key"]


@pytest.mark.parametrize("vector", VECTORS["must_differ"], ids=lambda v: v["because"])
def test_keys_that_must_differ(vector):
    first, second = (key_of(vector[name]) for name in ("first", "second"))
    assert hexadecimal(first) == vector["first"]["key"]
    assert hexadecimal(second) == vector["second"]["key"]
    assert not np.any(np.asarray(first) == np.asarray(second))


@pytest.mark.parametrize("vector", VECTORS["masks"], ids=lambda v: f"segment-{v['segment']}")
def test_masks(vector):
    mask = keystream_jit(words(vector["key"]), segment_nonce(vector["segment"]), 4)
    assert mask.tolist() == vector["words"]


@pytest.mark.parametrize("vector", VECTORS["nonces"], ids=lambda v: f"segment-{v['segment']}")
def test_nonces(vector):
    nonce = segment_nonce(vector["segment"])
    assert nonce.dtype == np.uint32
    assert hexadecimal(nonce) == vector["nonce"]


def test_labels():
    assert len(set(LABELS.values())) == len(LABELS)
    assert {v["label"] for v in VECTORS["keys"]} == set(LABELS.values())


def test_all_keys_of_a_grid_differ():
    grid = itertools.product(range(5), range(1, 8), range(1, 8))
    rounds, first, second = np.array(list(grid), np.uint32).T
    keys = np.asarray(jax.jit(jax.vmap(pair_mask))(rounds, first, second))
    assert len({key.tobytes() for key in keys}) == len(keys) == 5 * 7 * 7
    for i in (0, 100, 244):
        one = pair_mask(int(rounds[i]), int(first[i]), int(second[i]))
        np.testing.assert_array_equal(keys[i], one)
    # Neighbouring infos give unrelated keys: 256 fair bits a pair, 5 standard errors.
    distances = np.bitwise_count(keys[1:] ^ keys[:-1]).sum(axis=1)
    assert abs(distances.mean() - 128) < 5 * 8 / np.sqrt(len(distances))


def test_every_bit_of_every_input_counts():
    def key(ikm, salt, numbers, context):
        return derive_key(
            ikm,
            PAIR_MASK,
            salt=salt,
            round_id=numbers[0],
            first=numbers[1],
            second=numbers[2],
            context_hash=context,
        )

    inputs = [IKM, SALT, jnp.array([7, 1, 2], jnp.uint32), jnp.arange(32, dtype=jnp.uint8)]
    sizes = [array.size * array.dtype.itemsize * 8 for array in inputs]
    flat = np.concatenate([np.asarray(array).view(np.uint8) for array in inputs])
    flips = np.unpackbits(flat) ^ np.eye(sum(sizes), dtype=np.uint8)
    flips = np.packbits(np.vstack([np.unpackbits(flat), flips]), axis=1)
    parts = np.split(flips, np.cumsum([size // 8 for size in sizes])[:-1], axis=1)
    parts = [np.ascontiguousarray(part).view(array.dtype) for part, array in zip(parts, inputs)]
    keys = np.asarray(jax.jit(jax.vmap(key))(*parts))
    assert len({key.tobytes() for key in keys}) == 1 + 2 * 256 + 3 * 32 + 256


def test_jit_equals_eager_and_numbers_may_be_traced(jit_or_not):
    traced = jit_or_not(pair_mask)(jnp.uint32(7), jnp.uint32(1), jnp.uint32(2))
    assert hexadecimal(traced) == VECTORS["keys"][0]["key"]
    assert hexadecimal(pair_mask(7, np.int64(1), 2)) == VECTORS["keys"][0]["key"]


def test_several_labels_at_once():
    labels = (key_schedule.SEAL_ENC, key_schedule.SEAL_MAC)
    together = derive_keys(IKM, labels, salt=SALT, round_id=7, first=1, second=2)
    vectors = {(v["label"], v["first"]): v["key"] for v in VECTORS["keys"]}
    assert [hexadecimal(key) for key in together] == [vectors[label, 1] for label in labels]


def test_missing_parties_are_zero():
    key = derive_key(IKM, key_schedule.PUBLIC, salt=SALT, round_id=7)
    assert hexadecimal(key) == next(
        v["key"] for v in VECTORS["keys"] if v["label"] == key_schedule.PUBLIC
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ikm": IKM[:4]}, r"ikm of type uint32\[4\]"),
        ({"ikm": IKM.astype(jnp.int32)}, r"ikm of type int32\[8\]"),
        ({"salt": 3}, "salt of type int"),
        ({"label": "Pair mask"}, "label='Pair mask'"),
        ({"label": ""}, "label=''"),
        ({"label": "pair\0mask"}, "label="),
        ({"label": None}, "label=None"),
        ({"round_id": -1}, "round_id=-1 must be an integer from 0"),
        ({"round_id": 2**32}, "round_id=4294967296"),
        ({"round_id": True}, "round_id=True must be an integer"),
        ({"round_id": 7.0}, "round_id=7.0 must be an integer"),
        ({"first": jnp.int32(1)}, r"first of type int32\[\]"),
        ({"second": jnp.ones(2, jnp.uint32)}, r"second of type uint32\[2\].*vmap"),
        ({"context_hash": b"hash"}, "context_hash of type bytes"),
        ({"context_hash": np.zeros(8, np.uint32)}, r"context_hash of type uint32\[8\]"),
    ],
)
def test_static_mistakes(change, message):
    arguments = {"ikm": IKM, "label": PAIR_MASK, "salt": SALT, "round_id": 7} | change
    with pytest.raises(ValueError, match=message):
        derive_key(arguments.pop("ikm"), arguments.pop("label"), **arguments)


@pytest.mark.parametrize("labels", [(), ("pair-mask", "client")])
def test_labels_of_one_call_have_one_length(labels):
    with pytest.raises(ValueError, match="labels="):
        derive_keys(IKM, labels, salt=SALT, round_id=7)


@pytest.mark.parametrize("segment", [-1, 2**32, 1.0, jnp.uint32(1)])
def test_segments_are_static_and_in_range(segment):
    with pytest.raises(ValueError, match="segment"):
        segment_nonce(segment)
