"""One round between operating-system processes: one for each client and one for the server.

**A demonstration of the message API, and no transport product.** It runs over loopback TCP with
the frames of ``wire.packing`` and the keys of ``host.keys``: what passes between processes is what
would pass between machines, byte for byte, and nothing else does. A deployment has transport
security besides (frames are authenticated, and what is in them is masked or sealed, but who talks
to whom is open), and reconnects, logs, and an authority that vouches for identities.

Processes are spawned, so a script that calls ``run_round`` does it under
``if __name__ == "__main__":``.
"""

import multiprocessing
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_agg import _check
from fedjax_agg.codecs import Codec
from fedjax_agg.host.client import take_part
from fedjax_agg.host.identity import Identity
from fedjax_agg.host.keys import X25519
from fedjax_agg.host.server import Outcome, serve
from fedjax_agg.host.setting import Setting
from fedjax_agg.participation import STAGES
from fedjax_agg.protocols import Protocol
from fedjax_agg.session import Session
from fedjax_agg.wire.packing import SERVER

_LOOPBACK = "127.0.0.1"


def run_round(
    updates: Any,
    session: Session,
    *,
    codec: Codec,
    protocol: Protocol,
    lost: Mapping[int, str] | None = None,
    time_limit: float = 300.0,
    identity_seeds: Sequence[bytes] | None = None,
) -> Outcome:
    """The round of ``secure_mean``, every party in a process of its own.

    Args:
        updates: a pytree of floats, every leaf [n, ...]; each client's process gets its row.
        session: from ``host.keys.real_session``; each client's process gets its row.
        codec: as of ``secure_mean``.
        protocol: as of ``secure_mean``.
        lost: by client, a stage before whose message its process kills itself; where the protocol
            has no such stage, before the next one.
        time_limit: seconds that the server waits at a stage, compilation included; a client waits
            three times as long.
        identity_seeds: 32 secret bytes for the server and for each client, n + 1 in all; None
            takes fresh ones.

    Returns:
        The ``Outcome``, as the server has it.

    Raises:
        TypeError: no ``Session``; ``lost`` is no mapping.
        ValueError: a session with the ideal key agreement, whose dealer no process can be; an
            unknown stage or client; a time limit that is not positive; too few identities.
        RuntimeError: the server's process ended without an outcome, or did not end in time; a
            script without ``if __name__ == "__main__":``.

    Formal Guarantees:
        Those of the protocol, over X25519 and with authentic keys. The parent process makes the
        secrets of all, so this protects nothing from it.

    Example:
        In a script, under ``if __name__ == "__main__":``

        >>> import jax.numpy as jnp
        >>> import fedjax_agg as fa
        >>> from fedjax_agg.host.keys import real_session
        >>> session = real_session(fa.simulated_session(fa.fixed_seed(0), num_clients=3))
        >>> outcome = run_round(
        ...     jnp.eye(3), session, codec=fa.FixedPoint(clip=2.0, levels=6), protocol=fa.Plain(),
        ...     lost={2: "upload"})  # doctest: +SKIP
        >>> outcome.mean.tolist(), outcome.survivors.tolist()  # doctest: +SKIP
        ([0.5, 0.0, 0.5], [True, False, True])
    """
    _check.instance("session-type", Session, session=session)
    if not isinstance(session.key_exchange, X25519):
        raise _check.error("real-session", f"session with {session.key_exchange}", "a real one")
    if multiprocessing.parent_process() is not None:
        raise RuntimeError(
            "run_round was called by a process that it has itself started, as it imported the "
            'script: call it under if __name__ == "__main__":'
        )
    _check.instance("lost-type", Mapping, lost={} if lost is None else lost)
    _check.positive("time-limit", time_limit=time_limit)
    n, lost = session.num_clients, dict(lost or {})
    for client, stage in lost.items():
        _check.integer_in("client-id", 1, n, lost=client)
        _check.one_of("stage", STAGES, stage=stage)
    seeds = identity_seeds or [secrets.token_bytes(32) for _ in range(n + 1)]
    if len(seeds) != n + 1:
        raise _check.error("identity-seed", f"{len(seeds)} identity_seeds", f"{n + 1}")
    directory = {party: Identity.from_seed(seed).public for party, seed in enumerate(seeds)}
    setting = Setting.of(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates),
        n,
        codec,
        protocol,
        public_seed=session.public_seed,
        round_id=int(session.round_id),
        time_limit=time_limit,
    )

    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    context = None if session.context is None else np.asarray(session.context)
    server = spawn.Process(
        target=_server, args=(setting, seeds[SERVER], directory, there, context), daemon=True
    )
    server.start()
    there.close()
    # As many waits as there are stages and messages back, at most.
    patience = time_limit * (3 * len(STAGES) + 3)
    clients = []
    try:
        address = (_LOOPBACK, _receive(here, patience))
        for row in range(n):
            own = jax.tree.map(np.asarray, session.rows(row, 1))
            update = jax.tree.map(lambda x: np.asarray(x[row]), updates)  # noqa: B023
            arguments = (setting, own, update, seeds[row + 1], directory, address)
            clients.append(
                spawn.Process(target=_client, args=(*arguments, lost.get(row + 1)), daemon=True)
            )
            clients[-1].start()
        return _receive(here, patience)
    finally:
        for process in (*clients, server):
            process.join(1.0)
            process.kill()


def _receive(pipe, patience: float):
    """What the server's process has to say, or one clear line."""
    if not pipe.poll(patience):
        raise RuntimeError(f"the server's process has not answered within {patience} s")
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(
            "the server's process ended without an outcome; its own output above says why"
        ) from None


def _server(setting: Setting, seed: bytes, directory, pipe, context) -> None:
    with socket.create_server((_LOOPBACK, 0)) as listener:
        pipe.send(listener.getsockname()[1])
        pipe.send(serve(setting, Identity.from_seed(seed), directory, listener, context))


def _client(setting, session, update, seed: bytes, directory, address, lost_at) -> None:
    try:
        take_part(
            setting, session, update, Identity.from_seed(seed), directory, address, lost_at=lost_at
        )
    except (ValueError, OSError) as why:
        sys.exit(f"client {int(session.client_ids[0])}: {why}")
