"""Differentiable secure aggregation in JAX.

    client i                                                wire      server               inverse
    --------                                                ----      ------               -------
    update -forward-> grid units -round-> words -mask-> Upload ==> sum, unmask -> Total -> mean
    float pytree      float32[D]          uint32[D]                uint32[D]      float pytree

Law 1: in the protocol's integers the total equals the plain sum of the survivors' words bit for
bit, for every protocol and key. Law 2: the Jacobian of a round with respect to the updates is
that of the plain weighted mean of clipped updates.

A simulation holds every client's secrets in each of its processes: it models a protocol and its
arithmetic, and protects nothing from the machine that runs it.
"""

from fedjax_agg._xla import compiler_options
from fedjax_agg.blind_round import blind_mean, open_blind
from fedjax_agg.codecs import Codec, FixedPoint
from fedjax_agg.costs import compare_costs
from fedjax_agg.group_key import agree_group_key
from fedjax_agg.participation import Participation, drop_clients
from fedjax_agg.plan import Plan, plan_round
from fedjax_agg.protocols import Exchange, LightSecAgg, Plain, Protocol, SecAgg
from fedjax_agg.secure_aggregate import SecureAggregateState, apply_if_ok, secure_aggregate
from fedjax_agg.secure_round import Report, secure_mean, secure_sum, transcript
from fedjax_agg.session import (
    RoundContext,
    Session,
    fixed_seed,
    root_seed,
    simulated_session,
)
from fedjax_agg.wire import Transcript

__all__ = [
    "Codec",
    "Exchange",
    "FixedPoint",
    "LightSecAgg",
    "Participation",
    "Plain",
    "Plan",
    "Protocol",
    "Report",
    "RoundContext",
    "SecAgg",
    "SecureAggregateState",
    "Session",
    "Transcript",
    "agree_group_key",
    "apply_if_ok",
    "blind_mean",
    "compare_costs",
    "compiler_options",
    "drop_clients",
    "fixed_seed",
    "open_blind",
    "plan_round",
    "root_seed",
    "secure_aggregate",
    "secure_mean",
    "secure_sum",
    "simulated_session",
    "transcript",
]

__version__ = "0.1.0"
