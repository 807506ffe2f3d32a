"""The planner on the command line: ``python -m fedjax_agg plan --help``."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fedjax_agg.plan import PROTOCOLS, Plan, plan_round
from fedjax_agg.sharing.parameters import ADVERSARIES

_BAD_INPUT = 2
# What the library calls an argument, and what the command line does.
_FLAGS = {
    "num_clients": "--clients",
    "params_or_size": "--params",
    "clip": "--clip",
    "bits": "--bits",
    "max_weight": "--max-weight",
    "protocol": "--protocol",
    "dropout": "--dropout",
    "collusion": "--collusion",
    "security": "--security",
    "failure": "--failure",
}
_JSON_KEYS = (
    "ring_bits",
    "levels",
    "step",
    "error_bound",
    "degree",
    "threshold",
    "min_survivors",
    "privacy",
    "survivors",
    "log2_privacy_failure",
    "log2_correctness_failure",
    "bytes_up",
    "bytes_down",
    "stored_bytes",
    "server_keystream_words",
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_BAD_INPUT, f"{self.prog}: {message}; --help shows all arguments\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after ``python -m fedjax_agg``; None takes them from ``sys.argv``.

    Returns:
        The exit status: 0, or 2 where the input is bad, with one line on stderr that says what
        to change.

    Raises:
        SystemExit: the arguments cannot be parsed (status 2), or ask for help (status 0).

    Example:
        >>> main("plan --clients 100 --params 1e6 --clip 1 --bits 16 --dropout 0.6".split())
        2
    """
    parsed = _parser().parse_args(arguments)
    try:
        plan = plan_round(
            parsed.params,
            num_clients=parsed.clients,
            clip=parsed.clip,
            bits=parsed.bits,
            max_weight=parsed.max_weight,
            protocol=parsed.protocol,
            dropout=parsed.dropout,
            collusion=parsed.collusion,
            consistency=parsed.adversary == ADVERSARIES[0],
            security=parsed.security,
            failure=parsed.failure,
        )
    except ValueError as error:
        print(f"{_parser().prog} plan: {_in_flags(str(error))}", file=sys.stderr)
        return _BAD_INPUT
    print(json.dumps(_numbers(plan), indent=2) if parsed.json else plan)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m fedjax_agg", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser(
        "plan",
        help="the ring, the graph and the costs of a round",
        description="From the numbers of an experiment to a ring in which no sum can wrap, "
        "and to a graph of neighbours that outlasts dropouts and collusion.",
        allow_abbrev=False,
    )
    add = plan.add_argument
    add("--clients", type=_whole, required=True, help="clients in a cohort")
    add("--params", type=_whole, required=True, help="parameters of the model, such as 1e6")
    add("--clip", type=float, required=True, help="bound on the norm of one update")
    add("--bits", type=_whole, required=True, help="resolution of one client's word")
    add("--max-weight", type=_whole, default=1, help="largest integer weight (1)")
    add("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="(%(default)s)")
    add("--dropout", type=float, help="fraction of clients that may drop out")
    add("--collusion", type=float, help="fraction of clients that may be corrupt")
    add("--adversary", choices=ADVERSARIES, default=ADVERSARIES[0], help="(%(default)s)")
    add("--security", type=_whole, default=40, help="privacy fails in 2^-SECURITY (40)")
    add("--failure", type=_whole, default=20, help="rounds fail in 2^-FAILURE (20)")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _whole(text: str) -> int:
    """A whole number, also as 1e6."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, such as 1000 or 1e6")
    return int(number)


def _numbers(plan: Plan) -> dict[str, Any]:
    return {key: getattr(plan, key) for key in _JSON_KEYS}


def _in_flags(message: str) -> str:
    """The message of an exception with arguments as the command line writes them."""
    names = "|".join(_FLAGS)
    return re.sub(rf"\b({names})=", lambda found: f"{_FLAGS[found[1]]} ", message)


if __name__ == "__main__":
    sys.exit(main())
