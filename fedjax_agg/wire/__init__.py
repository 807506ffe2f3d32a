"""What crosses between client and server: every message a type of its own."""

from fedjax_agg.wire.messages import Total as Total
from fedjax_agg.wire.messages import Upload as Upload
