"""One secure round over several processes, as over several hosts: every one of them has the mean.

    python examples/hosts.py

Starts two processes on this machine that find each other over the loopback interface, spreads 16
clients over both, runs a SecAgg+ round, and ends them. Each process holds the updates of its own
clients; what goes over the network is one vector of masked words. On real hosts start one process
on each, with ``--process I --address HOST:PORT``.
"""

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import time

CLIENTS, LENGTH = 16, 1000


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds to run (default 2)")
    parser.add_argument("--protocol", choices=["plain", "secagg+"], default="secagg+")
    parser.add_argument("--time-limit", type=int, default=300, help="seconds before all is ended")
    parser.add_argument("--lose", type=int, help="this process is lost before the last round")
    parser.add_argument("--process", type=int, help="run as this one of them, from 0")
    parser.add_argument("--address", help="where process 0 listens, HOST:PORT")
    options = parser.parse_args(arguments)
    if options.processes < 1 or CLIENTS % options.processes:
        parser.error(f"--processes {options.processes} must divide {CLIENTS} clients")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be 1 or more")
    if options.lose is not None and not 0 <= options.lose < options.processes:
        parser.error(f"--lose {options.lose} must be one of {options.processes} processes, from 0")
    if (options.process is None) != (options.address is None):
        parser.error("--process and --address go together")
    return options


def say(line):
    """In one write: the processes share one output, and none may cut another's line in two."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def member(options):
    """One of the processes. Ends with status 1 and one line where another is lost."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    import fedjax_agg as fa

    jax.distributed.initialize(
        options.address,
        options.processes,
        options.process,
        initialization_timeout=60,
        heartbeat_timeout_seconds=10,
    )
    mesh = jax.make_mesh((jax.device_count(),), ("hosts",))
    by_client = NamedSharding(mesh, PartitionSpec("hosts"))
    codec = fa.FixedPoint(clip=1.0)
    protocol = fa.Plain() if options.protocol == "plain" else fa.SecAgg(threshold=3, degree=4)

    def own_updates(index):
        """Of the clients that live here; no other process makes them."""
        rows = np.arange(CLIENTS)[index[0]]
        return np.stack([np.sin(np.arange(LENGTH, dtype=np.float32) * (i + 1)) for i in rows]) / 32

    updates = jax.make_array_from_callback((CLIENTS, LENGTH), by_client, own_updates)
    for number in range(options.rounds):
        if options.process == options.lose and number == options.rounds - 1:
            os._exit(9)
        try:
            session = fa.simulated_session(
                fa.fixed_seed(0), num_clients=CLIENTS, round_id=jnp.uint32(number)
            )
            mean, report = fa.secure_mean(updates, session, codec=codec, protocol=protocol)
            mean = np.asarray(mean)
        except jax.errors.JaxRuntimeError as lost:
            reason = str(lost).splitlines()[0][:100]
            say(f"process {options.process}: another process was lost in round {number}: {reason}")
            os._exit(1)  # Without the others a regular end would wait for them.
        digest = hashlib.sha256(mean.tobytes()).hexdigest()[:16]
        say(f"process {options.process} round {number} ok {bool(report.ok)} mean {digest}")


def start_all(options, arguments):
    """Starts the processes, waits for all of them, and ends who does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *arguments, "--address", address]
    running = [subprocess.Popen([*command, "--process", str(i)]) for i in range(options.processes)]
    deadline = time.monotonic() + options.time_limit
    try:
        statuses = [
            process.wait(timeout=max(0.1, deadline - time.monotonic())) for process in running
        ]
    except subprocess.TimeoutExpired:
        print(f"not done after {options.time_limit} s", file=sys.stderr)
        statuses = [1]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return max(map(abs, statuses))


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.process is not None:
        member(options)
        return 0
    say(f"{options.processes} processes, {CLIENTS} clients, {options.protocol}")
    return start_all(options, arguments)


if __name__ == "__main__":
    sys.exit(main())
