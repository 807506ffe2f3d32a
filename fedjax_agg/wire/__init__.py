"""What crosses between client and server: every message a type of its own."""

from fedjax_agg.wire.messages import Attestations as Attestations
from fedjax_agg.wire.messages import Board as Board
from fedjax_agg.wire.messages import ChannelBoard as ChannelBoard
from fedjax_agg.wire.messages import CodedShares as CodedShares
from fedjax_agg.wire.messages import CodedSum as CodedSum
from fedjax_agg.wire.messages import PublicKeys as PublicKeys
from fedjax_agg.wire.messages import RevealedShares as RevealedShares
from fedjax_agg.wire.messages import SealedShares as SealedShares
from fedjax_agg.wire.messages import Total as Total
from fedjax_agg.wire.messages import Upload as Upload
from fedjax_agg.wire.transcript import Mail as Mail
from fedjax_agg.wire.transcript import Transcript as Transcript
from fedjax_agg.wire.transcript import View as View
