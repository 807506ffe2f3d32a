"""LightSecAgg: masks that are coded and spread, and whose sum is recovered in one shot.

So et al., "LightSecAgg: a lightweight and versatile design for secure aggregation in federated
learning", MLSys'22.

    advertise   a public key up; the keys of all down
    share       z_u, a mask of the length of the update, is coded: one vector to each peer, sealed
    upload      y_u = x_u + z_u  in GF(2^31 - 1)
    attest      each client's word to the others on the set of survivors
    unmask      from each survivor the sum of its coded vectors of the survivors' masks

From any U of these the server interpolates the sum of the survivors' masks, and its work is the
same whoever was lost. The price is paid before: every client sends N - 1 vectors of length
d / (U - T), and keeps as many.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg.arithmetic import M31, m31
from fedjax_agg.protocols.light_secagg import _client as client
from fedjax_agg.protocols.light_secagg._client import RULES, CodedClient, CodedKeys
from fedjax_agg.protocols.protocol import Cost, Exchange, Protocol, packed_bytes
from fedjax_agg.session import RoundContext
from fedjax_agg.sharing import agreement, graph, lagrange
from fedjax_agg.wire import ChannelBoard, CodedShares, CodedSum, Mail, Total, Upload

_KEY_BYTES, _TAG_BYTES, _WORD_BYTES = 32, 32, 4


@dataclasses.dataclass(frozen=True)
class LightSecAgg(Protocol):
    """Secure aggregation with one coded mask a client, whose sum is recovered in one shot.

    Attributes:
        privacy: T: so many clients, with the server, learn nothing but the sum.
        survivors: U, the target: so many clients must upload, and so many of them answer; more
            than T. Of N clients N - U may be lost.
        consistency: whether clients attest the set of survivors to each other before they answer.
            Without it the server has to be trusted to name one set to all.
        group: GF(2^31 - 1), in which masks can be coded.

    Raises:
        ValueError: ``privacy`` below 1, ``survivors`` not above it; at the round, more survivors
            than clients.

    | what happens | the round |
    | --- | --- |
    | a client is lost at *advertise* or *share* | goes on without it |
    | lost at *upload* | its mask is in no sum |
    | lost at *attest* or *unmask* | its update is in the sum; its help is not needed |
    | fewer than U upload, or answer | ``ok`` False, zeros |
    | a client refuses | counts as lost from there on; ``report.refusals`` says why |
    | an answer is wrong | unnoticed: the sum is garbage |

    Formal Guarantees:
        **Server that follows the protocol**, with any T clients: they learn the sum of the
        survivors' updates, who survived, and nothing else. At least U - T updates of others are in
        it. Coded vectors hide masks unconditionally (every T of them are independent of the mask);
        the masks themselves and the noise are ChaCha20 under keys of 256 bits, within 2^-62 an
        element of uniform; channels are as strong as ChaCha20 and HMAC-SHA256 over an **ideal**
        key agreement. An upload that comes late, from a client that was named as lost, stays
        hidden: no answer is about its mask alone.
        **Server that names different survivors to different clients**: with ``consistency`` and
        2 U > N + T, which the planner sees to and a bare ``LightSecAgg`` does not, no two sets are
        attested by U clients each, so all answers of honest clients are about one set. That a
        client answers once is not enough. Without ``consistency`` a server takes some answers
        about a set and some about the set without one client, fewer than U of each, and combines
        them so that this client's mask alone is left: of the U - T parts of its update it learns
        N - U linear combinations, from which small integers may follow.
        **T clients without the server**: nothing beyond what all may see, namely keys, survivors
        and lengths. **A network observer** the same, and who sends what when, as long as the links
        to the server are encrypted and authenticated, which is not part of the protocol; without
        that it sees what the server sees, and learns the sum.
        **Lists of keys**: every key after *advertise* depends on the list and on T and U, so
        clients who are shown different ones share no key and refuse each other's messages.
        **Not given**: what ``SecAgg`` does not give either; anything about more than T clients; to
        tell a wrong coded vector or a wrong answer, of which one makes the sum garbage. A mask
        serves one round: two updates under one mask are one subtraction apart.

    Example:
        The third of five clients is lost before it uploads:

        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> session = fa.simulated_session(fa.fixed_seed(0), num_clients=5)
        >>> mean, report = fa.secure_mean(
        ...     jnp.eye(5) / 2, session, codec=fa.FixedPoint(clip=1.0),
        ...     protocol=LightSecAgg(privacy=1, survivors=4),
        ...     participation=jnp.array([True, True, False, True, True]))
        >>> mean, bool(report.ok)
        (Array([0.125, 0.125, 0.   , 0.125, 0.125], dtype=float32), True)
    """

    privacy: int
    survivors: int
    consistency: bool = True
    _: dataclasses.KW_ONLY
    group: M31 = M31()

    rules = RULES
    by_coordinate = True

    def __post_init__(self):
        _check.instance("coded-group-type", M31, group=self.group)
        _check.boolean("consistency", consistency=self.consistency)
        privacy = _check.integer_in("privacy", 1, lagrange.MAX_CLIENTS - 1, privacy=self.privacy)
        least = _check.integer_in(
            "target-survivors", privacy + 1, lagrange.MAX_CLIENTS, survivors=self.survivors
        )
        object.__setattr__(self, "privacy", privacy)
        object.__setattr__(self, "survivors", least)

    def check(self, num_clients: int) -> None:
        """Raises ValueError where the survivors are more than the clients of a cohort."""
        _check.integer_in("coded-clients", 2, lagrange.MAX_CLIENTS, num_clients=num_clients)
        _check.integer_in(
            "target-survivors", self.privacy + 1, num_clients, survivors=self.survivors
        )

    def _blocks(self, length: int) -> tuple[int, int, int]:
        """The numbers of blocks of a mask and of noise, and how many elements one has."""
        of_mask = self.survivors - self.privacy
        return of_mask, self.privacy, -(-length // of_mask)

    def join(self, secret: jax.Array, ctx: RoundContext) -> CodedKeys:
        """Three secrets of one client, independent of each other and of other rounds."""
        return client.join(secret, ctx)

    def prepare(self, num_clients: int) -> tuple[Exchange, ...]:
        """*advertise* and *share*."""
        return (
            Exchange("advertise", client.advertise, _keep, self._publish),
            Exchange("share", self._share, _route),
        )

    def _publish(self, keys: jax.Array, sent: jax.Array, ctx: RoundContext) -> ChannelBoard:
        return ChannelBoard(sent, keys, None, self._session_id(keys, sent, ctx))

    def _session_id(self, keys: jax.Array, present: jax.Array, ctx: RoundContext) -> jax.Array:
        """What all later keys depend on: the keys of who is present, and the configuration."""
        keys = jnp.where(present[:, None], keys, np.uint32(0))
        numbers = (self.privacy, self.survivors, self.group.bits, int(self.consistency))
        return graph.permutation_seed(ctx.public_seed, keys, numbers)

    def deal(
        self,
        board: ChannelBoard,
        handles: Any,
        private: Any,
        ctx: RoundContext,
    ) -> ChannelBoard:
        """The entries for every client and peer."""
        n = board.present.shape[0]
        if not ctx.key_exchange.dealt:
            return board._replace(entries=jnp.broadcast_to(board.keys, (n, n, 8)))
        ids = jnp.arange(1, n + 1, dtype=jnp.uint32)
        deal = jax.vmap(agreement.deal, (0, 0, 0, None, None))
        entries = deal(handles[:, 0], private.channel_secret, ids, ids, ids - np.uint32(1))
        return board._replace(entries=entries)

    def _share(
        self, keys: CodedKeys, inbox: None, ctx: RoundContext
    ) -> tuple[CodedClient, CodedShares]:
        session_id = self._session_id(ctx.board.keys, ctx.board.present, ctx)
        # One coordinate more than the update, for a weight.
        blocks = self._blocks(ctx.structure.size + 1)
        return client.share(keys, ctx, blocks=blocks, session_id=session_id)

    def receive(self, private: CodedClient, inbox: CodedShares, ctx: RoundContext) -> CodedClient:
        """One client opens its peers' vectors; who did not send one takes no further part."""
        return client.receive(private, inbox, ctx, least=self.survivors)

    def protect(self, words: jax.Array, private: CodedClient, ctx: RoundContext) -> Upload:
        """The words plus the mask."""
        start = 0 if ctx.start is None else ctx.start
        return Upload(m31.add(words, client.elements(private.mask_key, words.size, start)))

    def respond(self, num_clients: int) -> tuple[Exchange, ...]:
        """*attest*, if ``consistency`` is on, and *unmask*."""
        least = self.survivors

        def attest(private, inbox, ctx):
            return client.attest(private, ctx, least=least)

        def unmask(private, inbox, ctx):
            return client.unmask(private, inbox, ctx, least=least, consistency=self.consistency)

        exchanges = Exchange("attest", attest, _route), Exchange("unmask", unmask, _keep)
        return exchanges if self.consistency else exchanges[1:]

    def refusals(self, private: CodedKeys | CodedClient) -> jax.Array:
        """Which rules this client has found broken."""
        return private.refusals.broken

    def recover(self, uploads: jax.Array, mail: Mapping[str, Mail], ctx: RoundContext) -> Total:
        """The server interpolates the sum of the survivors' masks, whoever was lost."""
        answers: CodedSum = mail["unmask"].outboxes
        given = answers.sent & mail["unmask"].sent & ctx.survivors
        ok = jnp.sum(given, dtype=jnp.int32) >= self.survivors
        blocks = lagrange.decode(answers.words, given, self.survivors - self.privacy)
        mask = blocks.reshape(-1)[: uploads.shape[0]]
        words = m31.subtract(uploads, mask)
        return Total(jnp.where(ok, words, np.uint32(0)), ok)

    def cost(self, length: int, num_clients: int, dropped: int = 0) -> Cost:
        """Keys, coded vectors, the packed words, attestations, and one vector of help.

        It is the same whoever is lost.
        """
        n, (of_mask, of_noise, size) = num_clients, self._blocks(length)
        coded, blocks = packed_bytes(size, self.group), of_mask + of_noise
        sealed = (n - 1) * (coded + _TAG_BYTES)
        up = {
            "advertise": _KEY_BYTES,
            "share": sealed,
            "upload": packed_bytes(length, self.group),
            "attest": (n - 1) * _TAG_BYTES,
            "unmask": coded,
        }
        survivors = -(-n // 8)
        down = {
            "advertise": (n - 1) * _KEY_BYTES,
            "share": sealed,
            "upload": 0,
            "attest": survivors,
            "unmask": (n - 1) * _TAG_BYTES,
        }
        if not self.consistency:
            del up["attest"], down["attest"]
            down["unmask"] = survivors
        return Cost(
            bytes_up=up,
            bytes_down=down,
            client_keystream_words={
                # Two words an element of mask and noise; a word an element to seal, and to open.
                "share": 2 * blocks * size + 2 * (n - 1) * size,
                "upload": 2 * length,
            },
            # Vectors, and the weights of interpolations: 62 for each pair of points, of which an
            # inverse is 59, and the products of all differences to each node.
            client_field_products={"share": n * blocks * (size + 62) + blocks**2},
            server_field_products={"unmask": n * of_mask * (size + 62) + n**2},
            client_stored_bytes={"share": _WORD_BYTES * n * size},
        )


def _keep(outboxes, sent, ctx) -> None:
    """What clients sent is the server's own."""


def _route(outboxes, sent: jax.Array, ctx: RoundContext):
    """Every message to the peer in whose row it lies: [sender, receiver] -> [receiver, sender]."""
    arrived = outboxes._replace(sent=outboxes.sent & sent[:, None])
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), arrived)
