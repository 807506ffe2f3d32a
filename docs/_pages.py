"""The pages of the site that are made from the code, as Markdown; nothing here needs mkdocs.

The error index comes from ``tests/errors.json``, what each party sees from a traced round of each
protocol and the types of messages, the reference from docstrings.
"""

import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

import fedjax_agg as fa
from fedjax_agg import (
    arithmetic,
    codecs,
    diagnostics,
    federated,
    protocols,
    session,
    streaming,
    testing,
)
from fedjax_agg._remedies import REMEDIES
from fedjax_agg.participation import STAGES
from fedjax_agg.wire import messages

ROOT = Path(__file__).parent.parent
ROOMS = (federated, streaming, testing, diagnostics, codecs, protocols, session, arithmetic)
PROTOCOLS = {
    "Plain": fa.Plain(),
    "SecAgg and SecAgg+": fa.SecAgg(),
    "LightSecAgg": fa.LightSecAgg(privacy=1, survivors=3),
}

# ---- the error index ----------------------------------------------------------------------------

_ERRORS = """\
# Error index

Every mistake that can be seen before a round runs raises at once, and its message has one form:
*argument=value must be requirement; remedy [tag]*. The tag at its end is what to look for here.
Each of the {count} below has the remedy, what a user wrote, and the exact message that it raised.

Tags that begin with `refuse-` are rules by which a client protects itself. A client on a host
raises; inside a compiled round it falls silent, and `report.refusals` counts it.
"""


def error_index() -> str:
    """The page of all messages, from the table that the tests compare with the library."""
    rows = json.loads((ROOT / "tests" / "errors.json").read_text())
    tags = sorted({row["tag"] for row in rows})
    sections = (_error(tag, [row for row in rows if row["tag"] == tag]) for tag in tags)
    return "\n".join([_ERRORS.format(count=len(tags)), *sections])


def _error(tag: str, rows: list[dict[str, str]]) -> str:
    remedy = re.sub(r"([*_|<\[])", r"\\\1", REMEDIES[tag])
    session = "\n".join(f">>> {row['code']}\n{row['type']}: {row['message']}" for row in rows)
    return f"## {tag}\n\nWhat to do: {remedy}.\n\n``` {{ .pycon .wrap }}\n{session}\n```\n"


# ---- what each party sees -----------------------------------------------------------------------

_SEES = """\
# What each party sees

A round is a list of stages, and every message of it has a type of its own. The tables are read off
a round of each protocol, and the sections below them are the docstrings of the types. All messages
go through the server, which holds every one of them; what is *sealed* it cannot read.
[Views](views.md) takes these messages out of a round that has run.
"""


_FRAMES = """\
## Between processes

In a round [between processes](processes.md) messages are [frames](wire.md), and some are other than
in a simulation:

| stage | a client sends | a client receives |
| --- | --- | --- |
| *advertise* | [SignedKeys](#signedkeys) | [KeyList](#keylist), which it makes the board of |
| after *upload* | - | [Survivors](#survivors) |
"""


def message_types() -> list[type]:
    """The types of messages, in the order in which their module defines them."""
    things = vars(messages).values()
    return [t for t in things if inspect.isclass(t) and t.__module__ == messages.__name__]


def messages_page() -> str:
    """Who sends, receives and sees which message at each stage, and what each message holds."""
    tables = (_stages(name, protocol) for name, protocol in PROTOCOLS.items())
    kinds = (f"### {t.__name__}\n\n{_docstring(t, example=False)}" for t in message_types())
    return "\n".join([_SEES, *tables, _FRAMES, "## The messages\n", *kinds])


def _stages(name: str, protocol: fa.Protocol) -> str:
    """The table of one protocol, from a round that is traced and never runs."""
    n = 4

    def traced(seed):
        session = fa.simulated_session(seed, num_clients=n)
        updates, codec = jnp.zeros((n, 8)), fa.FixedPoint(clip=1.0)
        return fa.transcript(updates, session, codec=codec, protocol=protocol)

    kept = jax.eval_shape(traced, fa.fixed_seed(0))
    lines = [
        "| stage | a client sends | a client receives | the server holds | published to all |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage in (stage for stage in STAGES if stage in kept.stages):
        mail = kept.stages[stage]
        sent, received = _kind(mail.outboxes), _kind(mail.inboxes)
        board = _kind(kept.public.board) if stage == "advertise" else "-"
        lines.append(f"| *{stage}* | {sent} | {received} | {sent} of every client | {board} |")
    lines.append(f"| the end | - | - | {_kind(kept.total)} | who survived |")
    return "\n".join([f"## {name}\n", *lines, ""])


def _kind(message: Any) -> str:
    """The type of a message, with a link to its section; of a bare array, dtype and shape."""
    if message is None:
        return "-"
    name = type(message).__name__
    if hasattr(message, "_fields"):
        return f"[{name}](#{name.lower()})"
    return f"`{message.dtype}{list(message.shape[1:])}`"


# ---- the reference ------------------------------------------------------------------------------

_API = """\
# Names at the top level

`import fedjax_agg as fa`, and these are all names of `fa`. In a shell `help(fa.secure_mean)` says
the same. The tests run every example.
"""
_ROOMS = """\
# Names in modules

What is not at the [top level](../fedjax_agg/__init__.py) is imported from the module that it is in.
"""
_SECTION = re.compile(r"([A-Z][A-Za-z ]+):")
_ITEM = re.compile(r"([\w`, .*]+): (.*)", re.DOTALL)
_WIDTH = 80


def api_page() -> str:
    """The names at the top level."""
    return "\n".join([_API, *(_documented(f"fa.{name}", getattr(fa, name)) for name in fa.__all__)])


def rooms_page() -> str:
    """The public names of the modules that users import from."""
    return "\n".join([_ROOMS, *map(_room, ROOMS)])


def _room(room: ModuleType) -> str:
    def is_own(name, thing):
        home = getattr(thing, "__module__", None) or ""
        return name[0] != "_" and name not in fa.__all__ and home.startswith(room.__name__)

    things = [(name, thing) for name, thing in vars(room).items() if is_own(name, thing)]
    short = room.__name__.removeprefix("fedjax_agg.")
    return "\n".join(
        [
            f"## {room.__name__}\n\n{inspect.cleandoc(room.__doc__ or '')}\n",
            *(_documented(f"{short}.{name}", thing, level=3) for name, thing in things),
        ]
    )


def _documented(name: str, thing: Any, level: int = 2) -> str:
    """A heading, the signature and the docstring; of a class, its public methods too."""
    parts = [f"{'#' * level} {name}\n\n{_signature(name, thing)}\n\n{_docstring(thing)}"]
    if inspect.isclass(thing):
        for method_name, method in vars(thing).items():
            function = getattr(method, "__func__", method)
            if method_name[0] != "_" and inspect.isfunction(function):
                signature = _signature(f"{thing.__name__}.{method_name}", function)
                parts.append(f"{signature}\n\n{_docstring(function)}")
            elif method_name[0] != "_" and isinstance(method, property):
                parts.append(f"**`{thing.__name__}.{method_name}`**: {_docstring(method)}")
    return "\n".join(parts)


def _signature(name: str, thing: Any) -> str:
    """The parameters and defaults; types are in the docstring, with their shapes."""
    parameters, kinds = [], set()
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.kind not in kinds:
            parameters.append("*")
        kinds.add(parameter.kind)
        if parameter.name != "self":
            text = str(parameter.replace(annotation=parameter.empty))
            # Optax rules are tuples of functions, which print as their addresses.
            parameters.append(f"{parameter.name}=…" if " at 0x" in text else text)
    line = f"{name}({', '.join(parameters)})"
    if len(line) > _WIDTH:
        line = "\n".join([f"{name}(", *(f"    {parameter}," for parameter in parameters), ")"])
    return f"```python\n{line}\n```"


def _docstring(thing: Any, *, example: bool = True) -> str:
    """A docstring as Markdown: its sections with bold titles, items as lists, examples as code."""
    text, section = [], None
    sections: list[tuple[str, list[str]]] = []
    for line in inspect.cleandoc(thing.__doc__ or "").splitlines():
        title = _SECTION.fullmatch(line)
        if title:
            section = []
            sections.append((title[1], section))
        elif section is not None and line[:1].strip():
            section = None
            text.append(line)
        else:
            (text if section is None else section).append(line)
    parts = ["\n".join(text).strip()]
    for title, lines in sections:
        if title == "Example" and not example:
            continue
        body = inspect.cleandoc("\n".join(["", *lines])).strip()
        parts.append(f"**{title}**\n\n{_body(title, body)}")
    return "\n\n".join(parts) + "\n"


def _body(title: str, body: str) -> str:
    if title in ("Args", "Attributes", "Raises"):
        items = re.split(r"\n(?=\S)", body)
        return "\n".join(_ITEM.sub(r"- `\1`: \2", item) for item in items)
    if title == "Example":
        blocks = re.split(r"\n\n(?=\S)", body)
        return "\n\n".join(f"```pycon\n{b}\n```" if b[:3] == ">>>" else b for b in blocks)
    # A sentence that begins in bold begins a paragraph.
    return re.sub(r"(?<=\.)\n(?=\*\*)", "\n\n", body)
