"""Text from a language model: prompts are read into memory in segments, then written on, token by token.

for text in generate(lm, params, tokenizer, prompt): ...       one stream, shown as it is drawn
done = complete(lm, params, tokenizer, prompts)                 several at once: done.texts, done.state
prompt = chat.render(tokenizer, messages)                       how a conversation is written for a model that was taught one

Memory is carried from the prompt to the text and out again, so a conversation goes on where it stopped and the prompt may be
of any length. The cost of a token does not depend on how much was read, unless the memory itself grows.
"""

from memtx.generate import chat
from memtx.generate.sampling import GREEDY, Sampling, sample
from memtx.generate.text import Completion, complete, generate

__all__ = ["GREEDY", "Completion", "Sampling", "chat", "complete", "generate", "sample"]
