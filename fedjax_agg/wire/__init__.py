"""What crosses between client and server: every message a type of its own, and as bytes."""

from fedjax_agg.wire.layout import Field as Field
from fedjax_agg.wire.layout import layout_of as layout_of
from fedjax_agg.wire.layout import round_layouts as round_layouts
from fedjax_agg.wire.messages import Attestations as Attestations
from fedjax_agg.wire.messages import Board as Board
from fedjax_agg.wire.messages import ChannelBoard as ChannelBoard
from fedjax_agg.wire.messages import CodedShares as CodedShares
from fedjax_agg.wire.messages import CodedSum as CodedSum
from fedjax_agg.wire.messages import KeyList as KeyList
from fedjax_agg.wire.messages import PublicKeys as PublicKeys
from fedjax_agg.wire.messages import RevealedShares as RevealedShares
from fedjax_agg.wire.messages import SealedShares as SealedShares
from fedjax_agg.wire.messages import SignedKeys as SignedKeys
from fedjax_agg.wire.messages import Survivors as Survivors
from fedjax_agg.wire.messages import Total as Total
from fedjax_agg.wire.messages import Upload as Upload
from fedjax_agg.wire.packing import Header as Header
from fedjax_agg.wire.packing import frame_bytes as frame_bytes
from fedjax_agg.wire.packing import pack as pack
from fedjax_agg.wire.packing import sender_of as sender_of
from fedjax_agg.wire.packing import unpack as unpack
from fedjax_agg.wire.transcript import Mail as Mail
from fedjax_agg.wire.transcript import Transcript as Transcript
from fedjax_agg.wire.transcript import View as View
