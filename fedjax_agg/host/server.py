"""The server of a round between processes: it routes what clients send, and opens the sum."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg._core import inverse
from fedjax_agg._stages import Static
from fedjax_agg.host.identity import Identity, PublicIdentity, link_key, valid_keys
from fedjax_agg.host.keys import X25519
from fedjax_agg.host.setting import Setting
from fedjax_agg.wire import KeyList, Mail, SignedKeys, Survivors, frame_bytes, pack, unpack
from fedjax_agg.wire.packing import SERVER, sender_of


class Frame(NamedTuple):
    """The bytes of one message as they were on a socket.

    Attributes:
        kind: what message it is.
        sender: the id of the client, or 0 for the server.
        receiver: the same.
        data: the frame.

    Example:
        >>> Frame("upload", 3, 0, b"").sender
        3
    """

    kind: str
    sender: int
    receiver: int
    data: bytes


class Outcome(NamedTuple):
    """What the server has at the end of a round.

    Attributes:
        mean: the mean of the survivors' updates; zeros where ``ok`` is False.
        ok: whether the round succeeded.
        survivors: bool[n], whose uploads are in the sum.
        frames: the frames of all messages, in the order in which they were taken or sent.
        lost: by client, why the server gave it up.

    Example:
        >>> Outcome._fields[:3]
        ('mean', 'ok', 'survivors')
    """

    mean: Any
    ok: bool
    survivors: np.ndarray
    frames: list[Frame]
    lost: dict[int, str]


def serve(
    setting: Setting,
    identity: Identity,
    directory: Mapping[int, PublicIdentity],
    listener: socket.socket,
    context_hashes: np.ndarray | None = None,
) -> Outcome:
    """Plays the server, from the first connection to the sum.

    A client that is silent for the time limit, closes its connection, or sends anything but the
    frame that is due counts as lost from there on. The server never waits longer than the time
    limit for a stage.

    Args:
        setting: of the round.
        identity: the server's own.
        directory: by id, the public identities of all clients.
        listener: a bound socket.
        context_hashes: uint8[n, 32], of the model that each client was given; None where
            masks are bound to none.

    Example:
        >>> serve.__annotations__["return"].__name__
        'Outcome'
    """
    return asyncio.run(_Server(setting, identity, directory, context_hashes).play(listener))


class _Server:
    """The connections of a round, and all frames that passed."""

    def __init__(self, setting, identity, directory, context_hashes):
        self.setting, self.context_hashes, self.directory = setting, context_hashes, directory
        self.keys = {
            client: link_key(identity, directory[client], setting.session, setting.round_id, client)
            for client in range(1, setting.num_clients + 1)
        }
        self.links: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self.frames: list[Frame] = []
        self.lost: dict[int, str] = {}

    async def play(self, listener: socket.socket) -> Outcome:
        """The stages of the protocol one after the other."""
        setting, protocol = self.setting, self.setting.protocol
        n, ctx = setting.num_clients, setting.context(X25519())
        await self._greet(listener)
        mail: dict[str, Mail] = {}
        for exchange in protocol.prepare(n):
            outboxes, sent = await self._collect(exchange.name)
            if exchange.publish is not None:
                signed: SignedKeys = outboxes
                sent, signed = self._with_valid_keys(sent, signed)
                outboxes = signed.keys
                ctx = setting.with_board(exchange.publish(outboxes, sent, ctx), ctx)
                key_list = KeyList(sent, outboxes, signed.signature)
                await self._send("key-list", {client: key_list for client in self.links})
            mail[exchange.name] = await self._route(exchange, outboxes, sent, ctx)
        uploads, survivors = await self._collect("upload")
        ctx = ctx._replace(survivors=survivors)
        stages = protocol.respond(n)
        if stages:
            await self._send("survivors", {c: Survivors(survivors) for c in self.links})
        for exchange in stages:
            outboxes, sent = await self._collect(exchange.name)
            mail[exchange.name] = await self._route(exchange, outboxes, sent, ctx)
        for client in list(self.links):
            self._drop(client)
        return self._open(uploads.words, mail, ctx)

    def _open(self, uploads: np.ndarray, mail: dict[str, Mail], ctx) -> Outcome:
        setting, group = self.setting, self.setting.protocol.group
        ctx = ctx._replace(context_hash=self.context_hashes)

        @jax.jit
        def opened(uploads, mail, ctx):
            total = setting.protocol.recover(group.sum(uploads), mail, ctx)
            lifted = group.centre_lift(total.words).astype(jnp.float32)
            static = Static(setting.protocol, weighted=False, mean=True)
            return inverse(static, setting.codec, lifted, ctx, jnp.float32(1), total.ok)

        mean, _, ok = opened(uploads, mail, ctx)
        mean = jax.tree.map(np.asarray, mean)
        return Outcome(mean, bool(ok), np.asarray(ctx.survivors), self.frames, self.lost)

    def _with_valid_keys(self, sent: jax.Array, signed: SignedKeys) -> tuple[jax.Array, SignedKeys]:
        """Who goes on, and the keys of those: one bad key would end the round for everybody."""
        setting = self.setting
        valid = valid_keys(
            self.directory, signed.keys, signed.signature, sent, setting.session, setting.round_id
        )
        for row in np.flatnonzero(sent & ~valid):
            self._drop(int(row) + 1, "advertise: keys that are not valid, not new, or not signed")
        rows = jax.tree.map(
            lambda x: x * valid.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype), signed
        )
        return jnp.asarray(valid), rows

    async def _greet(self, listener: socket.socket) -> None:
        """A connection of every client that says who it is within the time limit."""
        setting, all_here = self.setting, asyncio.Event()
        layout = setting.layouts["hello"]

        async def greet(reader, writer):
            try:
                async with asyncio.timeout(setting.time_limit):
                    frame = await reader.readexactly(frame_bytes(layout))
                client = sender_of(frame)
                unpack(frame, layout, setting.header("hello", client, SERVER), self.keys[client])
            except (TimeoutError, OSError, EOFError, KeyError, ValueError):
                writer.close()
                return
            if client in self.links or all_here.is_set():
                writer.close()
                return
            self.links[client] = reader, writer
            if len(self.links) == setting.num_clients:
                all_here.set()

        server = await asyncio.start_server(greet, sock=listener)
        try:
            async with asyncio.timeout(setting.time_limit):
                await all_here.wait()
        except TimeoutError:
            for client in set(self.keys) - set(self.links):
                self.lost[client] = f"not here within {setting.time_limit} s"
        finally:
            # Who says hello from now on comes too late.
            all_here.set()
            server.close()

    async def _collect(self, kind: str) -> tuple[Any, jax.Array]:
        """The messages of a kind along axis 0, zeros where none came in time, and whose did."""
        setting, layout, messages = self.setting, self.setting.layouts[kind], {}

        async def collect(client: int, reader: asyncio.StreamReader) -> None:
            header = setting.header(kind, client, SERVER)
            try:
                async with asyncio.timeout(setting.time_limit):
                    frame = await reader.readexactly(frame_bytes(layout))
                messages[client] = unpack(frame, layout, header, self.keys[client])
            except TimeoutError:
                self._drop(client, f"{kind}: silent for {setting.time_limit} s")
            except (OSError, EOFError):
                self._drop(client, f"{kind}: closed its connection")
            except ValueError as wrong:
                self._drop(client, f"{kind}: {wrong}")
            else:
                self.frames.append(Frame(kind, client, SERVER, frame))

        await asyncio.gather(*(collect(client, link[0]) for client, link in self.links.items()))
        clients = range(1, setting.num_clients + 1)
        nothing = jax.tree.map(lambda field: np.zeros(field.shape, field.dtype), layout)
        rows = [messages.get(client, nothing) for client in clients]
        sent = np.array([client in messages for client in clients])
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), jnp.asarray(sent)

    async def _route(self, exchange, outboxes, sent: jax.Array, ctx) -> Mail:
        """The mail of an exchange; what it brings to clients is sent to them."""
        inboxes = exchange.server(outboxes, sent, ctx)
        if inboxes is not None:
            inboxes = jax.tree.map(np.asarray, inboxes)
            rows = {c: jax.tree.map(lambda x: x[c - 1], inboxes) for c in self.links}  # noqa: B023
            await self._send(exchange.name, rows)
        return Mail(outboxes, sent, inboxes)

    async def _send(self, kind: str, messages: Mapping[int, Any]) -> None:
        """A message to each of some clients; who does not take it in time is lost."""
        setting = self.setting

        async def send(client: int, message: Any) -> None:
            header = setting.header(kind, SERVER, client)
            frame = pack(message, setting.layouts[kind], header, self.keys[client])
            writer = self.links[client][1]
            writer.write(frame)
            self.frames.append(Frame(kind, SERVER, client, frame))
            try:
                async with asyncio.timeout(setting.time_limit):
                    await writer.drain()
            except (TimeoutError, OSError):
                self._drop(client, f"{kind}: did not take it")

        await asyncio.gather(*(send(*message) for message in messages.items()))

    def _drop(self, client: int, why: str | None = None) -> None:
        """Closes a connection, and notes why."""
        self.links.pop(client)[1].close()
        if why is not None:
            self.lost[client] = why
