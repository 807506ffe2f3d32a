"""Which clients' data does each value of a program depend on? A walk over a jaxpr.

Abstract interpretation. Every value gets a ``Taint``:

* ``level`` NONE: depends on no client's data. ROWS: the slice at index i along ``where`` depends on
  client i alone. ONE: depends on a single client, which ``where`` identifies. ALONE: each element
  depends on at most one client, it is not known which. MANY: elements that mix clients.
* ``masked``: integers that hold client data, to which a value from private keys, and from no
  client's data, was added as integers.
* ``keys``: which private keys of a session ("pair", "secret") it depends on, messages aside.

A *message* is what a party sends: it loses its ``keys``, as a ciphertext, a share or a public key
is the receiver's to hold. It keeps its level, so an upload is still its client's. Where messages
are sent is for the caller to say, by ``message`` or with a ``Marked`` protocol; that they are safe
to send is not for this walk to tell.

A value is *mixed* where an equation brings two clients together. That is allowed to integers
only, and where ``masks_required`` to sums of masked integers only. Everything else is a violation,
and so is a float that combines such a sum with one client's data again. A key that shows in a
result came there past the messages.

Every sub-jaxpr is entered. A primitive that holds one and is not known here raises
``NotImplementedError``; any other unknown primitive is taken to mix whatever rows it is given.
What it does not do: it does not look at values, so it cannot tell good masks from bad ones.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

import fedjax_agg as fa

NONE, ONE, ROWS, ALONE, MANY = "none", "one", "rows", "alone", "many"


@dataclasses.dataclass(frozen=True)
class Taint:
    level: str = NONE
    where: Any = None
    masked: bool = False
    keys: frozenset = frozenset()

    @property
    def clients(self):
        return self.level != NONE

    @property
    def place(self):
        return self.level, self.where


PUBLIC = Taint()
PAIR_KEYS = Taint(keys=frozenset(["pair"]))
SECRETS = Taint(keys=frozenset(["secret"]))
CLIENT_ROWS = Taint(ROWS, 0)


@dataclasses.dataclass(frozen=True)
class Result:
    violations: list[str]
    outputs: Any  # the taint of each output, in the tree of the outputs
    wide: list[str]  # 64-bit values that depend on clients or keys
    entered: set[str]  # the primitives whose sub-jaxprs were entered


def walk(function, *arguments, taints, masks_required=False):
    """Follows ``taints``, a tree prefix of ``arguments``, through ``function(*arguments)``."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    spread = jax.tree.map(
        lambda taint, tree: jax.tree.map(lambda _: taint, tree),
        tuple(taints),
        arguments,
        is_leaf=is_taint,
    )
    walker = _Walker(masks_required)
    values = [
        (taint, walker.name("input", position))
        for position, taint in enumerate(jax.tree.leaves(spread, is_leaf=is_taint))
    ]
    outputs = [taint for taint, _ in walker.run(jaxpr, values, ())]
    return Result(
        list(dict.fromkeys(walker.violations)),
        jax.tree.unflatten(jax.tree.structure(shapes), outputs),
        list(dict.fromkeys(walker.wide)),
        walker.entered,
    )


def session_taint(session):
    """The taints of a session: its keys are private, the rest is public."""
    return dataclasses.replace(
        session,
        round_id=PUBLIC,
        public_seed=PUBLIC,
        client_ids=PUBLIC,
        secrets=SECRETS,
        agreement=PAIR_KEYS,
    )


def message(tree):
    """The same arrays, sent: for the walk they are no secrets any more."""
    return jax.tree.map(_message, tree)


@jax.jit
def _message(array):
    return array


@dataclasses.dataclass(frozen=True)
class Marked(fa.Protocol):
    """A protocol whose messages are marked: outboxes, uploads, silence, and what the dealer posts.

    The dealer stands for key exchanges, whose public keys everybody sees.
    """

    protocol: fa.Protocol

    @property
    def group(self):
        return self.protocol.group

    @property
    def rules(self):
        return self.protocol.rules

    def check(self, num_clients):
        self.protocol.check(num_clients)

    def join(self, secret, ctx):
        return self.protocol.join(secret, ctx)

    def prepare(self, num_clients):
        return tuple(map(self._marked, self.protocol.prepare(num_clients)))

    def deal(self, board, agreement, private, ctx):
        return message(self.protocol.deal(board, agreement, private, ctx))

    def receive(self, private, inbox, ctx):
        return self.protocol.receive(private, inbox, ctx)

    def protect(self, words, private, ctx):
        return message(self.protocol.protect(words, private, ctx))

    def respond(self, num_clients):
        return tuple(map(self._marked, self.protocol.respond(num_clients)))

    def refusals(self, private):
        return message(self.protocol.refusals(private))

    def recover(self, uploads, mail, ctx):
        return self.protocol.recover(uploads, mail, ctx)

    def cost(self, length, num_clients, dropped=0):
        return self.protocol.cost(length, num_clients, dropped)

    def _marked(self, exchange):
        def client(private, inbox, ctx):
            private, outbox = exchange.client(private, inbox, ctx)
            return private, message(outbox)

        return exchange._replace(client=client)


def sub_jaxprs(params):
    """Every jaxpr in the parameters of an equation."""
    found = []
    for value in params.values() if isinstance(params, dict) else params:
        if hasattr(value, "eqns"):
            found.append(value)
        elif isinstance(value, (tuple, list, dict)):
            found += sub_jaxprs(value)
    return found


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in sub_jaxprs(eqn.params):
            yield from equations(inner)


def is_taint(x):
    return isinstance(x, Taint)


def _is_float(aval):
    return jax.numpy.issubdtype(aval.dtype, np.inexact)


_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bitcast_convert_type", "cbrt", "ceil", "clamp", "clz", "convert_element_type", "copy",
    "copy_p", "copysign", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or",
    "population_count", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh", "xor",
}  # fmt: skip
# Those that take a masked word to a masked word.
_KEEPS_MASK = {
    "and", "bitcast_convert_type", "convert_element_type", "copy", "copy_p", "neg", "not",
    "stop_gradient",
}  # fmt: skip
_IDENTITY = {"optimization_barrier", "pvary", "pcast"}
_ADDS = {"add", "sub", "add_any"}
_SUMS = {*_ADDS, "reduce_sum", "cumsum"}
_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "call", "remat", "remat2", "checkpoint",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call",
}  # fmt: skip


class _Walker:
    """A value is a pair: its taint, and a number that names its contents if it is an index."""

    def __init__(self, masks_required):
        self.masks_required = masks_required
        self.violations, self.wide, self.entered = [], [], set()
        self.names = {}  # (primitive, parameters, operands) -> number, equal for equal indices
        self.loops = {}  # number -> the loops whose iteration the index depends on

    # ---- indices -------------------------------------------------------------------------------

    def name(self, *description, loops=frozenset()):
        number = self.names.setdefault(description, len(self.names))
        self.loops[number] = loops
        return number

    def index_name(self, eqn, names, position, path):
        """A number for an output of one integer: the same for the same computation."""
        aval = eqn.outvars[position].aval
        if math.prod(aval.shape) != 1 or _is_float(aval):
            return None
        if any(name is None for name in names):
            return self.name("unknown", path, position, loops=_prefixes(path))
        loops = frozenset().union(*(self.loops[name] for name in names))
        params = str(sorted((k, str(v)) for k, v in eqn.params.items()))
        return self.name(eqn.primitive.name, params, position, *names, loops=loops)

    # ---- running a jaxpr -----------------------------------------------------------------------

    def run(self, jaxpr, inputs, path):
        body = getattr(jaxpr, "jaxpr", jaxpr)
        env = {var: (PUBLIC, None) for var in body.constvars}
        assert len(body.invars) == len(inputs), "the inputs of a sub-jaxpr are not understood"
        env.update(zip(body.invars, inputs))

        def read(atom):
            if not hasattr(atom, "val"):
                return env[atom]
            return PUBLIC, (self.name("literal", str(atom.val)) if not atom.aval.shape else None)

        for number, eqn in enumerate(body.eqns):
            here = (*path, number)
            outputs = self.equation(eqn, [read(atom) for atom in eqn.invars], here)
            for var, (taint, name) in zip(eqn.outvars, outputs, strict=True):
                if np.dtype(_dtype(var.aval)).itemsize == 8 and (taint.clients or taint.keys):
                    self.wide.append(f"{eqn.primitive.name} -> {var.aval}")
                env[var] = taint, name
        return [read(atom) for atom in body.outvars]

    def equation(self, eqn, inputs, path):
        primitive = eqn.primitive.name
        taints, names = [t for t, _ in inputs], [name for _, name in inputs]
        if primitive in _CALLS:
            (inner,) = sub_jaxprs(eqn.params)
            if eqn.params.get("name") == _message.__name__:
                return [(dataclasses.replace(t, keys=frozenset()), name) for t, name in inputs]
            self.entered.add(primitive)
            return self.run(inner, inputs, path)
        higher = getattr(self, f"_{primitive}", None)
        if higher is not None and primitive in ("scan", "while", "cond", "shard_map"):
            self.entered.add(primitive)
            return higher(eqn, inputs, path)
        if sub_jaxprs(eqn.params) and primitive != "reduce" and not primitive.startswith("scatter"):
            raise NotImplementedError(f"{primitive} holds a jaxpr and is not known to the walk")
        outputs = taints if primitive in _IDENTITY else self.first_order(eqn, taints, names)
        return [
            (
                dataclasses.replace(out, keys=_keys(taints)),
                self.index_name(eqn, names, position, path),
            )
            for position, out in enumerate(outputs)
        ]

    # ---- the two ways in which values meet -----------------------------------------------------

    def mix(self, eqn, taints):
        """Two clients meet in this equation."""
        primitive = eqn.primitive.name
        avals = [atom.aval for atom in (*eqn.invars, *eqn.outvars) if hasattr(atom, "aval")]
        met = [t for t in taints if t.clients]
        additive = primitive in _SUMS or primitive.startswith("psum")
        if primitive == "reduce":
            (reducer,) = sub_jaxprs(eqn.params)
            additive = all(inner.primitive.name == "add" for inner in equations(reducer))
        if any(_is_float(aval) for aval in avals if hasattr(aval, "dtype")):
            shapes = ", ".join(str(aval) for aval in avals)
            self.violations.append(f"{primitive} mixes floats of several clients: {shapes}")
        elif self.masks_required and not (additive and all(t.masked for t in met)):
            self.violations.append(f"{primitive} mixes unmasked integers of several clients")
        return Taint(MANY, masked=additive and all(t.masked for t in met))

    def together(self, eqn, taints):
        """The taint of elements that are computed from one element of each operand."""
        met = [t for t in taints if t.clients]
        if not met:
            return PUBLIC
        same = all(t.place == met[0].place for t in met)
        if len(met) > 1 and (not same or met[0].level == ALONE):
            return self.mix(eqn, taints)
        primitive, aval = eqn.primitive.name, eqn.outvars[0].aval
        masked = False
        if not _is_float(aval):
            if primitive in _ADDS:
                added = any(t.keys and not t.clients for t in taints)
                masked = added or all(t.masked for t in met)
            elif primitive in _KEEPS_MASK:
                masked = all(t.masked for t in met)
        return Taint(*met[0].place, masked)

    def either(self, eqn, taints):
        """The taint of elements each of which is an element of one operand."""
        met = [t for t in taints if t.clients]
        if not met:
            return PUBLIC
        masked = all(t.masked for t in met)
        if all(t.place == met[0].place for t in met):
            return Taint(*met[0].place, masked)
        if any(t.level == MANY for t in met):
            return self.mix(eqn, taints)
        return Taint(ALONE, masked=masked)

    # ---- primitives ----------------------------------------------------------------------------

    def first_order(self, eqn, taints, names):
        """The taint of every output, keys left to the caller."""
        primitive, params = eqn.primitive.name, eqn.params
        if not any(t.clients for t in taints):
            return [PUBLIC] * len(eqn.outvars)
        if primitive == "select_n" and not taints[0].clients:
            return [self.either(eqn, taints[1:])]
        if primitive in _ELEMENTWISE:
            return [self.together(eqn, taints)]
        collective = "axis_name" in params or any(
            isinstance(axis, str) for axis in params.get("axes", ())
        )
        if collective:
            return [self.mix(eqn, [t]) if t.clients else PUBLIC for t in taints]
        shapes = [tuple(atom.aval.shape) for atom in (*eqn.invars, eqn.outvars[0])]
        in_shape, out_shape = shapes[0], shapes[-1]
        if primitive in ("concatenate", "stack"):
            return [self.joined(eqn, taints)]
        if primitive == "dynamic_update_slice":
            return [self.updated(eqn, taints, names, shapes[1])]
        met = [t for t in taints if t.clients]
        if met[0].level in (ONE, MANY) and all(t.place == met[0].place for t in met):
            masked = primitive in _STRUCTURAL and all(t.masked for t in met)
            return [Taint(*met[0].place, masked)] * len(eqn.outvars)
        if primitive == "dot_general":
            return [self.dot_general(eqn, taints)]
        first = taints[0]
        if len(met) > 1 or not first.clients or primitive in ("sort", "top_k"):
            return [self.mix(eqn, taints)] * len(eqn.outvars)

        def moved(axis):
            level = ALONE if axis is None else ROWS
            return [Taint(level, axis, first.masked)] * len(eqn.outvars)

        # From here on one operand, the first, with rows or elements of one client each.
        if first.level == ALONE:
            known = primitive in _STRUCTURAL
            return moved(None) if known else [self.mix(eqn, taints)] * len(eqn.outvars)
        rows = first.where
        if primitive == "broadcast_in_dim":
            return moved(params["broadcast_dimensions"][rows])
        if primitive == "squeeze":
            if rows in params["dimensions"]:
                return moved(None)
            return moved(rows - sum(d < rows for d in params["dimensions"]))
        if primitive == "expand_dims":
            return moved(rows + sum(d <= rows for d in params["dimensions"]))
        if primitive == "transpose":
            return moved(params["permutation"].index(rows))
        if primitive == "reshape":
            before, size = math.prod(in_shape[:rows]), in_shape[rows]
            fits = [
                axis
                for axis, length in enumerate(out_shape)
                if length == size and math.prod(out_shape[:axis]) == before
            ]
            return moved(fits[0] if fits else None)
        if primitive in ("dynamic_slice", "slice"):
            if out_shape[rows] == in_shape[rows]:
                return moved(rows)
            if primitive == "slice":
                name = self.name("literal", str(params["start_indices"][rows]))
            else:
                name = names[1 + rows]
            single = out_shape[rows] == 1 and name is not None
            return [Taint(ONE, name, first.masked)] if single else moved(None)
        if primitive == "gather":
            by_one = params["dimension_numbers"].start_index_map == (rows,) and shapes[1] == (1,)
            single = by_one and params["slice_sizes"][rows] == 1 and names[1] is not None
            return [Taint(ONE, names[1], first.masked)] if single else moved(None)
        if primitive == "pad":
            untouched = params["padding_config"][rows] == (0, 0, 0)
            return moved(rows if untouched else None)
        if primitive in ("rev", "split", "unstack"):
            touched = params.get("dimensions", (params.get("axis"),))
            return moved(None if rows in touched else rows)
        if primitive.startswith(("reduce_", "arg")) or primitive == "reduce":
            axes = params.get("axes", params.get("dimensions"))
            if rows not in axes:
                return [Taint(ROWS, rows - sum(a < rows for a in axes))] * len(eqn.outvars)
        elif primitive.startswith("cum") and params["axis"] != rows:
            return [Taint(ROWS, rows)]
        return [self.mix(eqn, taints)] * len(eqn.outvars)

    def joined(self, eqn, taints):
        """concatenate, stack."""
        if eqn.primitive.name == "stack":
            out, axis = self.either(eqn, taints), eqn.params["axis"]
            moved = out.level == ROWS and axis <= out.where
            return dataclasses.replace(out, where=out.where + 1) if moved else out
        along = (ROWS, eqn.params["dimension"])
        return self.either(
            eqn, [Taint(ALONE, masked=t.masked) if t.place == along else t for t in taints]
        )

    def updated(self, eqn, taints, names, sizes):
        """dynamic_update_slice: the row of client i, written at i, makes rows of clients."""
        operand, update = taints[:2]
        if any(t.clients for t in taints[2:]):
            return self.mix(eqn, taints)
        for axis, name in enumerate(names[2:]):
            placed = update.place == (ONE, name) and sizes[axis] == 1
            if placed and (not operand.clients or operand.place == (ROWS, axis)):
                return Taint(ROWS, axis, update.masked and (operand.masked or not operand.clients))
        return self.either(eqn, taints[:2])

    def dot_general(self, eqn, taints):
        contracting, batch = eqn.params["dimension_numbers"]
        places = set()
        for side, t in enumerate(taints):
            if not t.clients:
                continue
            if t.level != ROWS or t.where in contracting[side]:
                return self.mix(eqn, taints)
            if t.where in batch[side]:
                places.add(batch[side].index(t.where))
                continue
            free = [
                axis
                for axis in range(len(eqn.invars[side].aval.shape))
                if axis not in contracting[side] and axis not in batch[side]
            ]
            left = len(eqn.invars[0].aval.shape) - len(contracting[0]) if side else len(batch[0])
            places.add(left + free.index(t.where))
        if len(places) > 1:
            return self.mix(eqn, taints)
        return Taint(ROWS, places.pop())

    # ---- loops, branches, meshes ---------------------------------------------------------------

    def fixpoint(self, start, body, path):
        """Runs ``body`` until the taint of its carry no longer grows."""
        carry = start
        while True:
            outputs = body(carry)
            grown = []
            for position, (old, new) in enumerate(zip(carry, outputs, strict=False)):
                if new.level == ONE and path in self.loops[new.where]:
                    # Some one client's: of this iteration now, of an earlier one in the next.
                    earlier = self.name("earlier", path, position, loops=_prefixes(path))
                    new = dataclasses.replace(new, where=earlier)
                grown.append(_join(old, new))
            if grown == carry:
                return carry, outputs
            carry = grown

    def _scan(self, eqn, inputs, path):
        (jaxpr,) = sub_jaxprs(eqn.params)
        body = getattr(jaxpr, "jaxpr", jaxpr)
        sliced = [
            len(outer.aval.shape) != len(inner.aval.shape)
            for outer, inner in zip(eqn.invars, body.invars)
        ]
        stacked = [
            len(outer.aval.shape) != len(inner.aval.shape)
            for outer, inner in zip(eqn.outvars, body.outvars)
        ]
        num_xs, num_carry = sum(sliced), len(stacked) - sum(stacked)
        num_consts = len(inputs) - num_xs - num_carry
        iteration = self.name("iteration", path, loops=frozenset([path]))

        def row(taint):
            if taint.level != ROWS:
                return taint
            if taint.where == 0:
                return dataclasses.replace(taint, level=ONE, where=iteration)
            return dataclasses.replace(taint, where=taint.where - 1)

        xs = [(row(taint), None) for taint, _ in inputs[num_consts + num_carry :]]
        carry_names = self.carry_names(num_carry, body.invars[num_consts:], path)

        def run(carry):
            values = [*inputs[:num_consts], *zip(carry, carry_names), *xs]
            return [taint for taint, _ in self.run(jaxpr, values, path)]

        start = [taint for taint, _ in inputs[num_consts : num_consts + num_carry]]
        carry, outputs = self.fixpoint(start, run, path)

        def stack(taint):
            if taint.level == ONE and taint.where == iteration:
                return dataclasses.replace(taint, level=ROWS, where=0)
            if taint.level == ROWS:
                return dataclasses.replace(taint, where=taint.where + 1)
            if taint.level == ONE and path in self.loops[taint.where]:
                return dataclasses.replace(taint, level=ALONE, where=None)
            return taint

        return [(taint, None) for taint in [*carry, *map(stack, outputs[num_carry:])]]

    def carry_names(self, count, variables, path):
        return [
            None
            if var.aval.shape or _is_float(var.aval)
            else self.name("carry", path, position, loops=frozenset([path]))
            for position, var in enumerate(variables[:count])
        ]

    def _while(self, eqn, inputs, path):
        in_cond, in_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        cond_consts, body_consts = inputs[:in_cond], inputs[in_cond : in_cond + in_body]
        start = [taint for taint, _ in inputs[in_cond + in_body :]]
        jaxpr = eqn.params["body_jaxpr"]
        variables = getattr(jaxpr, "jaxpr", jaxpr).invars[in_body:]
        carry_names = self.carry_names(len(start), variables, path)

        def run(carry):
            values = list(zip(carry, carry_names))
            return [t for t, _ in self.run(jaxpr, [*body_consts, *values], (*path, "body"))]

        carry, _ = self.fixpoint(start, run, path)
        values = list(zip(carry, carry_names))
        [(condition, _)] = self.run(
            eqn.params["cond_jaxpr"], [*cond_consts, *values], (*path, "cond")
        )
        return [(self.depending(eqn, condition, taint), None) for taint in carry]

    def _cond(self, eqn, inputs, path):
        (index, _), operands = inputs[0], inputs[1:]
        branches = [
            [taint for taint, _ in self.run(branch, operands, (*path, number))]
            for number, branch in enumerate(eqn.params["branches"])
        ]
        outputs = []
        for taints in zip(*branches):
            out = self.either(eqn, taints)
            out = dataclasses.replace(out, keys=_keys(taints))
            outputs.append((self.depending(eqn, index, out), None))
        return outputs

    def depending(self, eqn, condition, taint):
        """A value that was chosen by a condition."""
        if condition.clients:
            taint = dataclasses.replace(self.together(eqn, [condition, taint]), keys=taint.keys)
        return dataclasses.replace(taint, keys=taint.keys | condition.keys)

    def _shard_map(self, eqn, inputs, path):
        (jaxpr,) = sub_jaxprs(eqn.params)
        shards = {
            _shard_axis(spec, taint.where)
            for (taint, _), spec in zip(inputs, eqn.params["in_specs"])
            if taint.level == ROWS
        }
        outputs = []
        values = [(taint, None) for taint, _ in inputs]
        for (taint, _), spec in zip(self.run(jaxpr, values, path), eqn.params["out_specs"]):
            if taint.level == ONE or (
                taint.level == ROWS and {_shard_axis(spec, taint.where)} != shards
            ):  # the clients of one device, somewhere in the array
                taint = dataclasses.replace(taint, level=ALONE, where=None)
            outputs.append((taint, None))
        return outputs


_STRUCTURAL = {
    "broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice",
    "expand_dims", "gather", "pad", "reshape", "rev", "slice", "split", "squeeze", "stack",
    "transpose", "unstack",
}  # fmt: skip


def _join(a, b):
    """The least taint that covers both: what a carry may be in some iteration."""
    if not (a.clients and b.clients):
        level, where = (b if b.clients else a).place
        masked = (b if b.clients else a).masked
    else:
        level, where = a.place if a.place == b.place else (ALONE, None)
        level = MANY if MANY in (a.level, b.level) else level
        masked = a.masked and b.masked
    return Taint(level, where, masked, _keys([a, b]))


def _keys(taints):
    """The keys of what is made of ``taints``."""
    return frozenset().union(*(t.keys for t in taints))


def _shard_axis(spec, axis):
    return spec[axis] if axis < len(spec) else None


def _prefixes(path):
    return frozenset(path[:length] for length in range(len(path) + 1))


def _dtype(aval):
    dtype = getattr(aval, "dtype", np.dtype(np.bool_))
    return dtype if isinstance(dtype, np.dtype) else np.dtype(np.bool_)
