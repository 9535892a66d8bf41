"""Text generation: a model reads prompts in segments and then writes, token by token.

for text in generate(lm, params, tokenizer, prompt): ...       one stream, piece by piece
done = complete(lm, params, tokenizer, prompts)                 several at once: done.texts, done.state
prompt = chat.render(tokenizer, messages)                       the prompt of a conversation, for a chat model

The state passes from the prompt to the text and out again. A later call can continue with it, and a prompt may have any length.
The cost of a token does not depend on how much was read, unless the state grows with it.
"""

from memtx.generate import chat
from memtx.generate.batches import Batched, complete_in_batches
from memtx.generate.sampling import GREEDY, Sampling, sample
from memtx.generate.text import Completion, Options, complete, generate

__all__ = [
    "GREEDY",
    "Batched",
    "Completion",
    "Options",
    "Sampling",
    "chat",
    "complete",
    "complete_in_batches",
    "generate",
    "sample",
]
