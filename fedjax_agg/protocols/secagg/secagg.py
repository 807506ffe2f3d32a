"""SecAgg and SecAgg+: double masks, shared secrets, dropouts at every stage.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS'17;
Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead", CCS'20.

    advertise   public keys up; keys and graph down
    share       one share of the self seed b and of the recovery secret w to each neighbour, sealed
    upload      y_u = x_u + PRG(b_u) + sum_{v < u} PRG(s_uv) - sum_{v > u} PRG(s_uv),  v in N(u)
    attest      each client's word to its neighbours on the set of survivors
    unmask      for each neighbour one share: of b if it survived, of w if it did not

The server rebuilds b_u of every survivor and w_v of everyone who was lost after *share*, and takes
off the masks that do not cancel. ``w`` plays the part of the secret key of the mask exchange:
whoever has it can compute the client's pair keys of this round, so it is fresh in every round.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.arithmetic import Ring
from fedjax_agg.protocols.protocol import Cost, Exchange, Protocol, packed_bytes
from fedjax_agg.protocols.secagg import _client as client
from fedjax_agg.protocols.secagg import _server as server
from fedjax_agg.protocols.secagg._keys import RULES, Client, Keys, join, mask_nonce
from fedjax_agg.session import MAX_CLIENTS, RoundContext
from fedjax_agg.sharing import agreement, graph, shamir
from fedjax_agg.symmetric.chacha20 import keystream_sum
from fedjax_agg.wire import Board, Mail, PublicKeys, SealedShares, Total, Upload

_KEY_BYTES = 32
_SHARE_BYTES = 4 * shamir.CHUNKS


@dataclasses.dataclass(frozen=True)
class SecAgg(Protocol):
    """Secure aggregation with double masks, which tolerates the loss of clients at every stage.

    Attributes:
        threshold: t: so many of a client's neighbours together rebuild its secrets, and fewer
            learn nothing. None takes the least number above two thirds of the neighbours. A
            client holds no share of its own secrets, so t is at most ``degree``.
        degree: k: to how many neighbours each client has masks and shares. None is the complete
            graph of Bonawitz et al., n - 1; less is SecAgg+, on a random k-regular graph.
            ``plan_round(..., dropout=, collusion=)`` finds both numbers.
        consistency: whether clients attest the set of survivors to each other before they reveal
            shares. Without it the server has to be trusted to name one set to all.
        group: the ring of words and masks.
        min_survivors: no client helps to unmask the sum of fewer; None is ``threshold + 1``.

    Raises:
        ValueError: a threshold out of 1 to ``degree``; at the round, a degree that does not fit
            the cohort.

    | what happens | the round |
    | --- | --- |
    | a client is lost at *advertise* or *share* | goes on without it |
    | lost at *upload* | its masks are rebuilt and removed |
    | lost at *attest* or *unmask* | its update is in the sum; its help is not needed |
    | fewer than t neighbours of a client answer | ``ok`` False, zeros |
    | a client refuses | counts as lost from there on; ``report.refusals`` says why |
    | a revealed share is wrong | of t answers about a survivor: unnoticed, the sum is garbage; \
about a lost client, or of t + 1 and more: ``ok`` False; of t + 2 and more, if one share is wrong: \
``report.suspects`` names its holder, who may have been dealt it so |

    Formal Guarantees:
        **Server that follows the protocol**, with any fewer than t neighbours of each client:
        they learn the sum of the survivors, who survived, and nothing else of the others'
        updates. Uploads are as strong as ChaCha20 under 256-bit keys from an **ideal** key
        agreement, sealed shares as ChaCha20 and HMAC-SHA256, shares unconditionally so. On a
        random graph this holds but with the probability that the plan states.
        **Server that names different survivors to different clients**: with ``consistency`` and
        2 t > k + (corrupt neighbours), which the planner sees to and a bare ``SecAgg`` does not,
        no client's two secrets are both opened. Nor is an update bare otherwise: of a client's
        honest neighbours at least 2 t - k - (corrupt neighbours) > 0 have a mask with it and have
        named it a survivor, and their secrets stay closed. On the complete graph one set is
        answered, or none. On a random graph clients far apart may answer different sets, and the
        server learns the sum of those who are in both, or, if it drops those between, the sums of
        two arcs; ``min_survivors`` then bounds the sets that it names, not those sums.
        **t - 1 clients without the server**: nothing beyond what all may see, namely keys, graph,
        survivors and lengths. **A network observer** the same, and who sends what when, as long
        as the links to the server are encrypted and authenticated, which is not part of the
        protocol; without that it sees what the server sees, and learns the sum.
        **Lists of keys**: every key after *advertise* depends on the list, so clients who are
        shown different lists share no key and refuse each other's messages. A server that tries
        many lists, with clients of its own or without some that are honest, can choose among
        their graphs, and surround a client of low degree; a beacon that is published after the
        list would prevent it, and the seed of a simulation is none.
        **Not given**: authenticity of public keys, for which there is no authority here: a server
        that puts its own in the place of others' opens everything; privacy of the sum itself, or of
        a sum over few; validity: one client that uploads wrong words destroys the sum unnoticed,
        and one that deals wrong shares can fail a round and have their holder suspected; protection
        from a server that enrols clients of its own, or drops honest ones until the sum is over
        those it colludes with; forward secrecy within the round; anything for a client whose state
        masks two updates.

    Example:
        The third of five clients is lost before it uploads:

        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=5)
        >>> updates = jnp.eye(5) / 2
        >>> mean, report = fa.secure_mean(
        ...     updates, session, codec=fa.FixedPoint(clip=1.0), protocol=SecAgg(threshold=3),
        ...     participation=jnp.array([True, True, False, True, True]))
        >>> mean, bool(report.ok)
        (Array([0.125, 0.125, 0.   , 0.125, 0.125], dtype=float32), True)
    """

    threshold: int | None = None
    degree: int | None = None
    consistency: bool = True
    _: dataclasses.KW_ONLY
    group: Ring = Ring(32)
    min_survivors: int | None = None

    rules = RULES
    by_coordinate = True

    def __post_init__(self):
        _check.instance("group-type", Ring, group=self.group)
        _check.boolean("consistency", consistency=self.consistency)
        for name, low in (("degree", 1), ("threshold", 1), ("min_survivors", 2)):
            value = getattr(self, name)
            if value is not None:
                high = {
                    "degree": shamir.MAX_HOLDERS,
                    "threshold": self.degree or shamir.MAX_HOLDERS,
                    "min_survivors": MAX_CLIENTS,
                }[name]
                tag = name.replace("_", "-")
                object.__setattr__(self, name, _check.integer_in(tag, low, high, **{name: value}))

    def check(self, num_clients: int) -> None:
        """Raises ValueError where degree or threshold do not fit a cohort of this size."""
        k = self.degree_of(num_clients)
        _check.integer_in("sharing-clients", 1, shamir.MAX_HOLDERS, degree=k)
        graph.offsets(num_clients, k)
        _check.integer_in("threshold", 1, k, threshold=self.threshold_of(num_clients))
        if self.min_survivors is not None:
            _check.integer_in("min-survivors", 2, num_clients, min_survivors=self.min_survivors)

    def degree_of(self, num_clients: int) -> int:
        """The number of neighbours of a client in a cohort of this size."""
        return num_clients - 1 if self.degree is None else self.degree

    def threshold_of(self, num_clients: int) -> int:
        """The threshold in a cohort of this size."""
        if self.threshold is None:
            return 2 * self.degree_of(num_clients) // 3 + 1
        return self.threshold

    def least_of(self, num_clients: int) -> int:
        """The least number of survivors to unmask, in a cohort of this size."""
        if self.min_survivors is None:
            return self.threshold_of(num_clients) + 1
        return self.min_survivors

    def join(self, secret: jax.Array, ctx: RoundContext) -> Keys:
        """Four secrets of one client, independent of each other and of other rounds."""
        return join(secret, ctx)

    def prepare(self, num_clients: int) -> tuple[Exchange, ...]:
        """*advertise* and *share*."""
        return (
            Exchange("advertise", client.advertise, server.keep, self._publish),
            Exchange("share", self._share, server.route),
        )

    def _publish(self, keys: PublicKeys, sent: jax.Array, ctx: RoundContext) -> Board:
        session_id = self._session_id(keys, sent, ctx)
        return Board(sent, keys, self._graph(session_id, keys), None, session_id)

    def _session_id(self, keys: PublicKeys, present: jax.Array, ctx: RoundContext) -> jax.Array:
        """What all later keys depend on: the keys of who is present, and the configuration."""
        n = keys.mask.shape[0]
        numbers = (
            self.degree_of(n),
            self.threshold_of(n),
            self.group.bits,
            self.least_of(n),
            int(self.consistency),
        )
        key_list = jnp.concatenate([keys.channel, keys.mask], axis=1)
        key_list = jnp.where(present[:, None], key_list, np.uint32(0))
        return graph.permutation_seed(ctx.public_seed, key_list, numbers)

    def _graph(self, session_id: jax.Array, keys: PublicKeys) -> jax.Array:
        """The neighbours of every client: a function of what is public, after the keys are."""
        n = keys.mask.shape[0]
        if self.degree_of(n) == n - 1:
            order = jnp.arange(n, dtype=jnp.int32)
        else:
            order = graph.permutation(session_id, n)
        return graph.neighbours(order, self.degree_of(n))

    def deal(
        self, board: Board, handles: jax.Array | None, private: Keys | None, ctx: RoundContext
    ) -> Board:
        """The entries for every client, slot and key exchange."""
        if not ctx.key_exchange.dealt:
            keys = jnp.stack([board.keys.channel, board.keys.mask], axis=1)
            return board._replace(entries=keys[board.neighbours])
        slots = client.slots(board)

        def entries(handles, keys, own, neighbours):
            secrets = jnp.stack([keys.channel_secret, keys.recovery_secret])
            deal = jax.vmap(agreement.deal, (0, 0, None, None, None), out_axes=1)
            return deal(handles, secrets, own, client.ids(neighbours), slots)

        clients = jnp.arange(1, board.present.shape[0] + 1, dtype=jnp.uint32)
        return board._replace(
            entries=jax.vmap(entries)(handles, private, clients, board.neighbours)
        )

    def _share(self, keys: Keys, inbox: None, ctx: RoundContext) -> tuple[Client, SealedShares]:
        posted = ctx.board.keys
        session_id = self._session_id(posted, ctx.board.present, ctx)
        return client.share(
            keys,
            ctx,
            threshold=self.threshold_of(posted.mask.shape[0]),
            graph=self._graph(session_id, posted),
            session_id=session_id,
        )

    def receive(self, private: Client, inbox: SealedShares, ctx: RoundContext) -> Client:
        """One client opens its neighbours' shares; who did not send one takes no further part."""
        threshold = self.threshold_of(ctx.board.present.shape[0])
        return client.receive(private, inbox, ctx, threshold=threshold)

    def protect(self, words: jax.Array, private: Client, ctx: RoundContext) -> Upload:
        """The words plus the self mask plus the signed pair masks: one sum of keystreams."""
        start = 0 if ctx.start is None else ctx.start
        masks = keystream_sum(private.mask_keys, private.signs, mask_nonce(), words.size, start)
        return Upload(self.group.add(words, self.group.from_keystream(masks)))

    def respond(self, num_clients: int) -> tuple[Exchange, ...]:
        """*attest*, if ``consistency`` is on, and *unmask*."""
        threshold = self.threshold_of(num_clients)
        numbers = {"threshold": threshold, "least": self.least_of(num_clients)}

        def attest(private, inbox, ctx):
            return client.attest(private, ctx, **numbers)

        def unmask(private, inbox, ctx):
            return client.unmask(private, inbox, ctx, **numbers, consistency=self.consistency)

        exchanges = (
            Exchange("attest", attest, server.route),
            Exchange("unmask", unmask, server.keep),
        )
        return exchanges if self.consistency else exchanges[1:]

    def refusals(self, private: Keys | Client) -> jax.Array:
        """Which rules this client has found broken."""
        return private.refusals.broken

    def recover(self, uploads: jax.Array, mail: Mapping[str, Mail], ctx: RoundContext) -> Total:
        """The server rebuilds one secret of each client and removes what masks are left."""
        threshold = self.threshold_of(ctx.board.present.shape[0])
        return server.recover(uploads, mail, ctx, threshold=threshold, group=self.group)

    def cost(self, length: int, num_clients: int, dropped: int = 0) -> Cost:
        """Keys and graph, shares, the packed words, attestations and revealed shares."""
        n, k = num_clients, self.degree_of(num_clients)
        t, chunks = self.threshold_of(n), shamir.CHUNKS
        sealed = k * (2 * _SHARE_BYTES + _KEY_BYTES)
        up = {
            "advertise": 2 * _KEY_BYTES,
            "share": sealed,
            "upload": packed_bytes(length, self.group),
            "attest": k * _KEY_BYTES,
            "unmask": k * _SHARE_BYTES,
        }
        survivors = -(-n // 8)
        down = {
            # Also of who is no neighbour: the graph is recomputed, and no key may be there twice.
            "advertise": 2 * (n - 1) * _KEY_BYTES,
            "share": sealed,
            "upload": 0,
            "attest": survivors,
            "unmask": k * _KEY_BYTES,
        }
        if not self.consistency:
            del up["attest"], down["attest"]
            down["unmask"] = survivors
        return Cost(
            bytes_up=up,
            bytes_down=down,
            client_keystream_words={"upload": (k + 1) * length},
            client_field_products={"share": 2 * chunks * k * (t - 1)},
            server_keystream_words={
                "unmask": (n - dropped + dropped * min(k, n - dropped)) * length
            },
            # For each client: the products of k + 1 points, k inverses, and the weighted sums.
            server_field_products={"unmask": n * (k * (k + 1) + 63 * k + 4 * chunks * k)},
            client_stored_bytes={"share": 2 * k * _SHARE_BYTES},
        )
