"""Memory mechanisms. MEMORIES is the whole registry: a mechanism is one file, one line here, one card, and passes the
contract tests."""

from memtx.memory.full import Full
from memtx.memory.infini import Infini
from memtx.memory.recurrent import GRU, LSTM
from memtx.memory.sink import Sink
from memtx.memory.titans_blocks import MAC, MAG, MAL
from memtx.memory.window import Window
from memtx.memory.xl import TransformerXL

MEMORIES = {
    "full": Full,
    "window": Window,
    "sink": Sink,
    "xl": TransformerXL,
    "lstm": LSTM,
    "gru": GRU,
    "infini": Infini,
    "titans_mac": MAC,
    "titans_mag": MAG,
    "titans_mal": MAL,
}
