"""Keys of real sessions: published vectors, refusals, signatures, links."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_agg as fa
from fedjax_agg.host.identity import Identity, check_signatures, link_key, sign_keys, valid_keys
from fedjax_agg.host.keys import X25519, client_session, real_session
from fedjax_agg.structure import Structure
from fedjax_agg.symmetric import key_schedule
from fedjax_agg.symmetric.seal import open_sealed

EXCHANGE, SLOT = X25519(), jnp.zeros(1, jnp.uint32)
# A point of order 8 and one of order 4: https://cr.yp.to/ecdh.html, "points of low order".
LOW_ORDER = (
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "0100000000000000000000000000000000000000000000000000000000000000",
)
# RFC 7748, section 6.1.
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
BOB_PUBLIC = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
ALICE_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
SHARED = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def words(octets: str) -> jax.Array:
    return jnp.asarray(np.frombuffer(bytes.fromhex(octets), "<u4").astype(np.uint32))


def hexed(keys) -> str:
    return np.asarray(keys, "<u4").tobytes().hex()


def test_x25519_is_rfc_7748(jit_or_not):
    public_key, agree = jit_or_not(EXCHANGE.public_key), jit_or_not(EXCHANGE.agree)
    assert hexed(public_key(words(BOB))) == BOB_PUBLIC
    assert hexed(agree(words(BOB), words(ALICE_PUBLIC)[None], SLOT)) == SHARED
    scalar = "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"
    point = "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"
    result = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert hexed(agree(words(scalar), words(point)[None], SLOT)) == result


def test_the_iterated_vector_of_rfc_7748():
    k = u = words("09" + 31 * "00")
    for _ in range(1000):
        k, u = EXCHANGE.agree(k, u[None], SLOT)[0], k
    assert hexed(k) == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_mask_keys_of_a_shared_secret():
    """The published secret through the key schedule of the library, from independent code."""
    session = words("46a2ae8c38bfb44afbf116df16aabc231d5b5ed60e3d5cb33fe08b5f3f3eedb4")
    keys = [
        key_schedule.derive_key(
            words(SHARED), key_schedule.PAIR_MASK, salt=session, round_id=r, first=1, second=2
        )
        for r in (7, 8)
    ]
    assert [hexed(key) for key in keys] == [
        "40c3ee01ceb60a366e8e7c5150a081b5c7f16e2870f730a1f19ec9a038214134",
        "5354a42e0c81c34c3bf1d3ee83d3b72eb3e83f8131f9911977dc81feab26d71e",
    ]


@pytest.mark.parametrize("number", [2**255 - 19 + 9, 2**255 + int.from_bytes(b"\x09", "little")])
def test_keys_of_another_form_agree_on_zeros(number):
    """RFC 7748 takes both for the number 9; here one key is not another."""
    other = words(number.to_bytes(32, "little").hex())
    assert not EXCHANGE.agree(words(BOB), other[None], SLOT).any()
    assert EXCHANGE.agree(words(BOB), words("09" + 31 * "00")[None], SLOT).any()


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_agree_on_zeros(point):
    assert not EXCHANGE.agree(words(BOB), words(point)[None], SLOT).any()
    assert EXCHANGE.agree(words(BOB), words(BOB_PUBLIC)[None], SLOT).any()


def test_under_vmap_every_row_is_its_own():
    rng = np.random.default_rng(0)
    secrets = jnp.asarray(rng.integers(0, 2**32, (3, 8), np.uint32))
    public = jax.jit(jax.vmap(EXCHANGE.public_key))(secrets)
    slots = jnp.arange(3, dtype=jnp.uint32)
    agreed = jax.jit(jax.vmap(EXCHANGE.agree, (0, None, None)))(secrets, public, slots)
    np.testing.assert_array_equal(agreed, jnp.swapaxes(agreed, 0, 1))
    assert len({hexed(agreed[i, j]) for i in range(3) for j in range(i, 3)}) == 6
    # One secret for each entry, as of a server that agrees in the place of several clients.
    np.testing.assert_array_equal(EXCHANGE.agree(secrets, public[::-1], slots)[0], agreed[0, 2])


def first_stages(protocol, session, change=lambda keys: keys, absent=None, key=None):
    """The first client's state when it has read the list of keys, and with it the next stage.

    An absent client has a key in its row all the same.
    """
    structure = fa.RoundContext(
        session.round_id,
        session.public_seed,
        client=jnp.uint32(1),
        structure=Structure.of(jnp.zeros(5)),
        key_exchange=session.key_exchange,
    )
    n = session.num_clients
    states = [
        protocol.join(session.secrets[i], structure._replace(client=jnp.uint32(i + 1)))
        for i in range(n)
    ]
    keys = jax.tree.map(lambda *rows: jnp.stack(rows), *(state.public for state in states))
    advertise, share = protocol.prepare(n)
    present = jnp.arange(1, n + 1) != (absent or 0)
    if absent is not None:
        keys = jax.tree.map(lambda x: x.at[absent - 1].set(key), keys)
    ctx = structure._replace(board=advertise.publish(change(keys), present, structure))
    ctx = ctx._replace(board=protocol.deal(ctx.board, None, None, ctx))
    return share, states[0], ctx


@pytest.mark.parametrize("exchange", ["channel", "mask"])
@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_client_refuses_a_key_of_low_order(point, exchange):
    session = real_session(fa.simulated_session(fa.fixed_seed(0), num_clients=3))

    def replace(keys):
        return keys._replace(**{exchange: getattr(keys, exchange).at[1].set(words(point))})

    share, state, ctx = first_stages(fa.SecAgg(1), session, replace)
    with pytest.raises(ValueError, match="refuse-invalid-key"):
        share.client(state, None, ctx)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("protocol", [fa.SecAgg(1), fa.LightSecAgg(1, 2)])
@pytest.mark.parametrize("whose", ["nobody's", "the server's"])
def test_nothing_is_sealed_for_who_is_absent(protocol, whose):
    """Its key is zeros, with which everybody agrees, or what the server puts there."""
    session = real_session(fa.simulated_session(fa.fixed_seed(0), num_clients=4))
    secret = jnp.arange(1, 9, dtype=jnp.uint32)
    key = EXCHANGE.public_key(secret) if whose == "the server's" else jnp.zeros(8, jnp.uint32)
    share, state, ctx = first_stages(protocol, session, absent=2, key=key)
    _, outbox = share.client(state, None, ctx)
    own_keys = jax.tree.leaves(state.public)[0]

    def opened(client, secret_of_receiver):
        """What the holder of a secret makes of the message of client 1 to another."""
        slot = client - 1 if isinstance(protocol, fa.LightSecAgg) else client - 2
        agreed = EXCHANGE.agree(secret_of_receiver, own_keys[None], SLOT)[0]
        sealed = jax.tree.map(lambda x: x[slot], outbox.sealed)
        return open_sealed(
            agreed, sealed, salt=ctx.board.session_id, round_id=0, sender=1, receiver=client
        )

    words, authentic = opened(2, secret)
    if whose == "nobody's":
        # The secret of the channel is zeros.
        slot = 1 if isinstance(protocol, fa.LightSecAgg) else 0
        sealed = jax.tree.map(lambda x: x[slot], outbox.sealed)
        zeros = jnp.zeros(8, jnp.uint32)
        words, authentic = open_sealed(
            zeros, sealed, salt=ctx.board.session_id, round_id=0, sender=1, receiver=2
        )
    assert bool(authentic)
    assert not words.any()
    # The control: client 3 is there, and opens its share.
    channel = protocol.join(session.secrets[2], ctx._replace(client=jnp.uint32(3))).channel_secret
    words, authentic = opened(3, channel)
    assert bool(authentic)
    assert words.any()


@pytest.mark.slow
def test_totals_are_those_of_a_simulated_session():
    """Of SecAgg+; ``test_runner`` compares those of the others."""
    protocol = fa.SecAgg(2, 4)
    simulated = fa.simulated_session(fa.fixed_seed(3), num_clients=5, round_id=2)
    updates = jnp.asarray(np.random.default_rng(1).normal(size=(5, 70)), jnp.float32)

    @jax.jit
    def play(session, there):
        kept = fa.transcript(
            updates,
            session,
            codec=fa.FixedPoint(clip=1.0),
            protocol=protocol,
            participation=there,
        )
        return kept.total.words, kept.mean, kept.stages["upload"].outboxes.words, kept.report.ok

    there = jnp.array([True, False, True, True, True])
    ideal, real = play(simulated, there), play(real_session(simulated), there)
    assert bool(real[3])
    assert bool(ideal[3])
    np.testing.assert_array_equal(ideal[0], real[0])
    np.testing.assert_array_equal(ideal[1], real[1])
    assert (ideal[2] != real[2])[there].mean() > 0.99  # The masks are others.


@pytest.mark.slow
def test_ends_that_do_not_agree_break_the_sum():
    """The control: masks do come from X25519."""
    session = real_session(fa.simulated_session(fa.fixed_seed(3), num_clients=3))
    updates = jnp.ones((3, 64)) / 2

    @dataclasses.dataclass(frozen=True)
    class OtherAtEachEnd(X25519):
        def agree(self, secret, entries, slots):
            agreed = super().agree(secret, entries, slots)
            return agreed ^ jnp.broadcast_to(secret, agreed.shape)

    jax.tree_util.register_static(OtherAtEachEnd)
    broken = dataclasses.replace(session, key_exchange=OtherAtEachEnd())
    run = jax.jit(
        lambda s: fa.secure_mean(updates, s, codec=fa.FixedPoint(clip=9.0), protocol=fa.SecAgg(1))
    )
    assert not bool(run(broken)[1].ok) or not np.allclose(run(broken)[0], 0.5, atol=0.1)
    np.testing.assert_allclose(run(session)[0], 0.5, atol=1e-3)


def signed_list(n=3, session=b"s" * 32, round_id=4):
    people = [Identity.from_seed(bytes([i]) * 32) for i in range(n)]
    directory = {i + 1: who.public for i, who in enumerate(people)}
    keys = np.arange(8 * n, dtype=np.uint32).reshape(n, 8)
    signatures = np.stack(
        [sign_keys(who, keys[i], session, round_id, i + 1) for i, who in enumerate(people)]
    )
    return directory, keys, signatures, np.ones(n, bool), session, round_id


def test_a_list_that_all_have_signed_passes():
    assert check_signatures(*signed_list()) is None
    assert valid_keys(*signed_list()).all()


def changed(what):
    directory, keys, signatures, present, session, round_id = signed_list()
    if what == "a key":
        keys[1, 3] ^= 1
    if what == "a signature":
        signatures[1, 60] ^= 1
    if what == "two rows":
        keys[:2], signatures[:2] = keys[1::-1].copy(), signatures[1::-1].copy()
    if what == "the session":
        session = b"t" * 32
    if what == "the round":
        round_id += 1
    if what == "the directory":
        del directory[2]
    return directory, keys, signatures, present, session, round_id


@pytest.mark.parametrize(
    "what", ["a key", "a signature", "two rows", "the session", "the round", "the directory"]
)
def test_a_client_refuses_what_its_owner_has_not_signed(what):
    with pytest.raises(ValueError, match=r"the keys of client \d .*refuse-signature"):
        check_signatures(*changed(what))
    valid = valid_keys(*changed(what))
    # The first two rows are exchanged; of a session and a round nobody has signed anything.
    nobody = {"the session": [], "the round": [], "two rows": [2]}
    assert np.flatnonzero(valid).tolist() == nobody.get(what, [0, 2])


def test_who_is_not_there_needs_no_signature():
    directory, keys, signatures, present, session, round_id = changed("a key")
    present[1] = False
    arguments = directory, keys, signatures, present, session, round_id
    assert check_signatures(*arguments) is None
    assert valid_keys(*arguments).tolist() == [True, False, True]


def test_a_link_key_is_of_two_parties_a_session_a_round_and_a_client():
    one, two, three = (Identity.from_seed(bytes([i]) * 32) for i in range(3))
    keys = {
        link_key(one, two.public, bytes(32), 0, 1),
        link_key(one, three.public, bytes(32), 0, 1),
        link_key(one, two.public, b"s" * 32, 0, 1),
        link_key(one, two.public, bytes(32), 1, 1),
        link_key(one, two.public, bytes(32), 0, 2),
    }
    assert len(keys) == 5
    assert link_key(two, one.public, bytes(32), 0, 1) in keys
    with pytest.raises(ValueError, match="identity-key"):
        link_key(one, two.public._replace(link=bytes.fromhex(LOW_ORDER[0])), bytes(32), 0, 1)


def test_a_client_session_is_fresh_and_says_nothing():
    sessions = [client_session(2, public_seed=jnp.zeros(8, jnp.uint32)) for _ in range(2)]
    assert (sessions[0].secrets != sessions[1].secrets).any()
    shown = repr(Identity.fresh()) + repr(sessions[0])
    assert "redacted" in shown
    assert not any(str(int(w)) in shown for w in sessions[0].secrets[0])


@pytest.mark.parametrize("seed", [b"short", "x" * 32])
def test_an_identity_is_of_32_bytes(seed):
    with pytest.raises(ValueError, match="identity-seed"):
        Identity.from_seed(seed)


def test_a_group_key_needs_a_simulated_session():
    session = real_session(fa.simulated_session(fa.fixed_seed(0), num_clients=3))
    with pytest.raises(ValueError, match="group-session"):
        fa.agree_group_key(session)
