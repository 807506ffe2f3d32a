"""The key of an epoch: in all hands but the server's, or nobody goes on."""

import dataclasses
import hashlib
import hmac

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg import group_key

N = 5


def epoch(number=0, n=N):
    return fa.simulated_session(fa.fixed_seed(3), num_clients=n, round_id=number)


def test_all_members_have_one_key_and_it_is_fresh_in_every_epoch():
    keys = []
    for number in range(3):
        group, _ = fa.agree_group_key(epoch(number))
        assert group.confirmed.all()
        assert (group.keys == group.keys[:1]).all()
        keys.append(bytes(np.asarray(group.keys[0])))
    assert len(set(keys)) == 3


def test_the_server_relays_neither_the_key_nor_a_word_of_it():
    group, mail = fa.agree_group_key(epoch())
    relayed = np.concatenate([np.ravel(x) for x in jax.tree.leaves(mail)])
    assert not np.isin(np.asarray(group.keys[0]), relayed).any()
    # Every message has a pad of its own.
    pads = mail.wrapped.ciphertext ^ group.keys[:1]
    assert len(np.unique(np.asarray(pads))) == pads.size


@pytest.mark.parametrize("part", ["ciphertext", "tag"])
def test_a_changed_message_is_refused_and_its_receiver_takes_no_part(part):
    session = epoch()
    wrapped = group_key.wrap(session)
    broken = getattr(wrapped, part).at[2, 3].add(np.uint32(1))
    keys, members, tags = group_key.accept(session, wrapped._replace(**{part: broken}))
    assert members.tolist() == [True, True, False, True, True]
    assert group_key.confirm(session, keys, tags, members).tolist() == members.tolist()


def test_a_message_for_another_or_of_another_epoch_is_refused():
    wrapped = group_key.wrap(epoch())
    swapped = jax.tree.map(lambda x: x[jnp.array([1, 0, 2, 3, 4])], wrapped)
    assert group_key.accept(epoch(), swapped)[1].tolist() == [False, False, True, True, True]
    assert not group_key.accept(epoch(1), wrapped)[1].any()


def test_a_leader_who_gives_out_two_keys_is_found_out():
    """Key confirmation: nobody goes on, so nobody masks with a key that others lack."""
    session = epoch()
    keys, members, tags = group_key.accept(session, group_key.wrap(session))
    assert group_key.confirm(session, keys, tags, members).all()
    another = keys[3].at[0].add(np.uint32(1))
    of_another = tags.at[3].set(group_key._tags(session, another, session.client_ids[3:4])[0])
    two = group_key.confirm(session, keys.at[3].set(another), of_another, members)
    assert two.tolist() == [False] * N


def test_no_tag_can_be_passed_off_as_anothers():
    """The server broke what client 3 was sent, and says of it what client 1 has said."""
    session = epoch()
    keys, members, tags = group_key.accept(session, group_key.wrap(session))
    assert len({bytes(np.asarray(tag)) for tag in tags}) == N
    copied = group_key.confirm(session, keys, tags.at[2].set(tags[0]), members)
    assert copied.tolist() == [False] * N


def test_without_its_leader_an_epoch_has_no_key():
    group, _ = fa.agree_group_key(epoch(), participation=jnp.arange(N) > 0)
    assert not group.confirmed.any()
    group, _ = fa.agree_group_key(epoch(), participation=jnp.arange(N) != 2)
    assert group.confirmed.tolist() == [True, True, False, True, True]


def test_no_key_is_printed():
    group, _ = fa.agree_group_key(epoch())
    assert repr(group) == "GroupKeys(num_clients=5, keys=<redacted>)"


# ---- the ratchet --------------------------------------------------------------------------------


def test_all_members_ratchet_to_one_key_and_no_key_comes_back():
    group, _ = fa.agree_group_key(epoch())
    group = dataclasses.replace(group, confirmed=jnp.arange(N) != 2)
    chain = [group]
    for _ in range(4):
        chain.append(chain[-1].ratchet())
    for later in chain:
        assert (later.keys == later.keys[:1]).all()
        assert later.confirmed.tolist() == group.confirmed.tolist()
    assert len({bytes(np.asarray(later.keys[0])) for later in chain}) == 5


def test_a_step_of_the_ratchet_is_hkdf():
    """RFC 5869 with Python's HMAC: who has an output of it has no way back to its key."""
    keys = np.random.default_rng(0).integers(2**32, size=(N, 8), dtype=np.uint32)
    later = np.asarray(group_key.GroupKeys(jnp.asarray(keys), jnp.ones(N, bool)).ratchet().keys)
    info = b"fedjax_agg/v1/group-ratchet\0" + bytes(16)
    for old, new in zip(keys, later):
        extracted = hmac.digest(bytes(32), old.astype("<u4").tobytes(), hashlib.sha256)
        expanded = hmac.digest(extracted, info + b"\1", hashlib.sha256)
        assert new.astype("<u4").tobytes() == expanded
