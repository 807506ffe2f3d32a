"""The secure round with its clients in blocks: memory of one block and one sum, however many come.

    init ──▶ add_block ──▶ add_block ──▶ ... ──▶ close ──▶ finish ──▶ (mean, Report)
                 └─ edge ──▶ add_block ─┐
                 └─ edge ──▶ add_block ─┴─ merge ─▶ (the root's stream)

Law: with every client in at most one block, ``finish`` gives bit for bit what ``secure_mean``
gives of all rows at once, where ``participation`` is who arrived: in any order, in blocks of any
sizes, over any tree of aggregators. Words are integers, and no float depends on two clients.
"""

from fedjax_agg.streaming.blocks import add_block as add_block
from fedjax_agg.streaming.blocks import add_blocks as add_blocks
from fedjax_agg.streaming.opening import close as close
from fedjax_agg.streaming.opening import finish as finish
from fedjax_agg.streaming.opening import finish_sum as finish_sum
from fedjax_agg.streaming.opening import merge as merge
from fedjax_agg.streaming.stream import Stream as Stream
from fedjax_agg.streaming.stream import Sum as Sum
from fedjax_agg.streaming.stream import edge as edge
from fedjax_agg.streaming.stream import init as init
