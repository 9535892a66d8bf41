"""Memory mechanisms. MEMORIES is the whole registry: a mechanism is one file, one line here, one card, and passes the
contract tests."""

from memtx.memory.armt import ARMT
from memtx.memory.block_recurrent import BlockRecurrent
from memtx.memory.compressive import Compressive
from memtx.memory.full import Full
from memtx.memory.recurrent import GRU, LSTM
from memtx.memory.rmt import RMT
from memtx.memory.sink import Sink
from memtx.memory.window import Window
from memtx.memory.xl import TransformerXL

MEMORIES = {
    "full": Full,
    "window": Window,
    "sink": Sink,
    "xl": TransformerXL,
    "compressive": Compressive,
    "block_recurrent": BlockRecurrent,
    "rmt": RMT,
    "armt": ARMT,
    "lstm": LSTM,
    "gru": GRU,
}
