"""One client of a round between processes: it has its own row of everything, and a socket."""

import dataclasses
import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_agg import _check
from fedjax_agg._stages import Cohort, Static, uploader
from fedjax_agg.host.identity import Identity, PublicIdentity, check_signatures, link_key, sign_keys
from fedjax_agg.host.setting import Setting
from fedjax_agg.participation import STAGES
from fedjax_agg.session import RoundContext, Session
from fedjax_agg.wire import KeyList, SignedKeys, Survivors, Upload, frame_bytes, pack, unpack
from fedjax_agg.wire.packing import SERVER


@dataclasses.dataclass(frozen=True, repr=False)
class Link:
    """A client's end of its connection to the server: frames out and in, each within the limit.

    Attributes:
        setting: of the round.
        own: the client's id.
        key: 32 bytes, of ``link_key``.
        connection: the socket, with the time limit of the setting.

    Example:
        >>> Link(None, 1, bytes(32), None)
        Link(client=1)
    """

    setting: Setting
    own: int
    key: bytes
    connection: socket.socket

    def __repr__(self) -> str:
        return f"Link(client={self.own})"

    def send(self, kind: str, message: Any) -> None:
        """One message to the server."""
        header = self.setting.header(kind, self.own, SERVER)
        self.connection.sendall(pack(message, self.setting.layouts[kind], header, self.key))

    def receive(self, kind: str) -> Any:
        """The one message of a kind from the server.

        Raises:
            ValueError: another frame than that.
            OSError: none within the time limit, or the server is gone.
        """
        layout, limit = self.setting.layouts[kind], 3 * self.setting.time_limit
        frame, size, end = bytearray(), frame_bytes(layout), time.monotonic() + limit
        while len(frame) < size:
            try:
                # Of the message, however slowly its parts come.
                self.connection.settimeout(max(end - time.monotonic(), 1e-3))
                part = self.connection.recv(size - len(frame))
            except TimeoutError:
                raise TimeoutError(f"the server sent no {kind} within {limit} s") from None
            except ConnectionError:
                part = b""
            if not part:
                raise ConnectionError(f"the server is gone before {kind}")
            frame += part
        self.connection.settimeout(self.setting.time_limit)
        header = self.setting.header(kind, SERVER, self.own)
        return unpack(frame, layout, header, self.key)


def take_part(
    setting: Setting,
    session: Session,
    update: Any,
    identity: Identity,
    directory: Mapping[int, PublicIdentity],
    address: tuple[str, int],
    *,
    lost_at: str | None = None,
) -> None:
    """Plays one client from its keys to its last answer.

    Args:
        setting: of the round.
        session: one row, of ``client_session`` or ``real_session(...).rows(i, 1)``.
        update: this client's own update.
        identity: this client's own.
        directory: by id, the public identities of all clients, and of the server under 0; from
            an authority.
        address: host and port of the server.
        lost_at: a stage before whose message the process kills itself; for demonstrations.

    Raises:
        ValueError: the server, or a peer through it, broke a rule: its name is the tag. Nothing
            more is sent.
        OSError: the server is gone, or silent for longer than the time limit.

    Example:
        >>> take_part.__kwdefaults__
        {'lost_at': None}
    """
    protocol, n = setting.protocol, setting.num_clients
    own = _check.integer_in("client-id", 1, n, client=int(session.client_ids[0]))
    key = link_key(identity, directory[SERVER], setting.session, setting.round_id, own)
    context = None if session.context is None else session.context[0]
    ctx = setting.context(session.key_exchange)._replace(
        client=jnp.uint32(own), context_hash=context
    )

    def answer(link, kind, message):
        # A protocol need not have every stage.
        if lost_at is not None and STAGES.index(kind) >= STAGES.index(lost_at):
            os.kill(os.getpid(), signal.SIGKILL)
        link.send(kind, message)

    with socket.create_connection(address, timeout=setting.time_limit) as connection:
        link = Link(setting, own, key, connection)
        link.send("hello", ())
        private = jax.jit(protocol.join)(session.secrets[0], ctx)
        inbox = None
        for exchange in protocol.prepare(n):
            private, outbox = jax.jit(exchange.client)(private, inbox, ctx)
            _refuse(protocol, private)
            if exchange.publish is None:
                answer(link, exchange.name, outbox)
                inbox = link.receive(exchange.name)
            else:
                signed = sign_keys(identity, outbox, setting.session, setting.round_id, own)
                answer(link, exchange.name, SignedKeys(outbox, jnp.asarray(signed)))
                ctx = _read_keys(
                    setting, directory, exchange.publish, link.receive("key-list"), ctx
                )
        private = jax.jit(protocol.receive)(private, inbox, ctx)
        _refuse(protocol, private)
        answer(link, "upload", _upload(setting, session, update, private, ctx))

        stages = protocol.respond(n)
        if stages:
            survivors: Survivors = link.receive("survivors")
            ctx = ctx._replace(survivors=jnp.asarray(survivors.flags))
        inbox = None
        for exchange in stages:
            private, outbox = jax.jit(exchange.client)(private, inbox, ctx)
            _refuse(protocol, private)
            answer(link, exchange.name, outbox)
            if exchange is not stages[-1]:
                inbox = link.receive(exchange.name)


def _read_keys(setting, directory, publish, key_list: KeyList, ctx: RoundContext) -> RoundContext:
    """The context with the board, once every key on the list is its owner's."""
    signed = key_list.keys, key_list.signatures, key_list.present
    check_signatures(directory, *signed, setting.session, setting.round_id)
    return setting.with_board(publish(key_list.keys, key_list.present, ctx), ctx)


def _upload(setting: Setting, session: Session, update: Any, private: Any, ctx: RoundContext):
    """The client's protected words: the code of the jitted round, for a cohort of one row."""
    static = Static(setting.protocol, weighted=False, mean=True)

    @jax.jit
    def upload(private, session, update):
        row = jax.tree.map(lambda x: x[None], private)
        broken = setting.protocol.refusals(private)[None]
        cohort = Cohort(ctx, row, jnp.ones(1, jnp.bool_), broken, {})
        return Upload(uploader(static, setting.codec, session, cohort)(jnp.int32(0), update, None))

    return upload(private, session, update)


def _refuse(protocol, private) -> None:
    """What silences a client in a compiled round ends it here, with the name of the rule."""
    broken = np.flatnonzero(np.asarray(protocol.refusals(private)))
    if broken.size:
        rule = protocol.rules[broken[0]]
        raise _check.error(f"refuse-{rule}", f"the rule {rule}", "kept for a client to answer")
