"""Memory mechanisms. MEMORIES is the registry. A mechanism has a file, a line here and a card, and passes the contract."""

from memtx.memory.armt import ARMT
from memtx.memory.bidirectional import Bidirectional
from memtx.memory.block_recurrent import BlockRecurrent
from memtx.memory.compressive import Compressive
from memtx.memory.cross import Cross
from memtx.memory.delta import KDA, DeltaNet, GatedDeltaNet
from memtx.memory.engram import Engram
from memtx.memory.full import Full
from memtx.memory.infini import Infini
from memtx.memory.knn_lm import KNNLM
from memtx.memory.landmark import Landmark
from memtx.memory.linear import GLA, LinearAttention, RetNet
from memtx.memory.memorizing import Memorizing
from memtx.memory.product_keys import PEER, MemoryPlus, ProductKey
from memtx.memory.recurrent import GRU, LSTM
from memtx.memory.registry import Registry
from memtx.memory.rmt import RMT
from memtx.memory.rmt_encoder import RMTEncoder
from memtx.memory.sink import Sink
from memtx.memory.titans_blocks import MAC, MAG, MAL
from memtx.memory.ttt import TTTMLP, TTTLinear
from memtx.memory.window import Window
from memtx.memory.xl import TransformerXL

MEMORIES = Registry(
    {
        "full": Full,
        "window": Window,
        "sink": Sink,
        "xl": TransformerXL,
        "lstm": LSTM,
        "gru": GRU,
        "memorizing": Memorizing,
        "compressive": Compressive,
        "infini": Infini,
        "landmark": Landmark,
        "rmt": RMT,
        "rmt_encoder": RMTEncoder,
        "armt": ARMT,
        "block_recurrent": BlockRecurrent,
        "linear_attention": LinearAttention,
        "retnet": RetNet,
        "gla": GLA,
        "deltanet": DeltaNet,
        "gated_deltanet": GatedDeltaNet,
        "kda": KDA,
        "ttt_linear": TTTLinear,
        "ttt_mlp": TTTMLP,
        "titans_mac": MAC,
        "titans_mag": MAG,
        "titans_mal": MAL,
        "product_key": ProductKey,
        "memory_plus": MemoryPlus,
        "peer": PEER,
        "engram": Engram,
        "cross": Cross,
        "bidirectional": Bidirectional,
        "knn_lm": KNNLM,
    }
)
