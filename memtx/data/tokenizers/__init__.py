"""Tokenizers: text to token ids and back, with the bytes of each token.

tok = tokenizers.make_tokenizer("bpe:4096", corpus, cache)  `bytes`, a BPE of the corpus, or `pretrained:PATH`
tok = tokenizers.pretrained(path)                           from a folder with a tokenizer's files, or from a .gguf file
tok = tokenizers.load(path)                                 from the file that `tok.save(path)` wrote
tokenizers.write(tok, folder, "llama")                      as the files of a Hugging Face folder
"""

from memtx.data.tokenizers.base import SPECIALS, Tokenizer, check_fits
from memtx.data.tokenizers.files import pretrained
from memtx.data.tokenizers.named import byte_tokenizer, load, make_tokenizer
from memtx.data.tokenizers.words import Words, numbers
from memtx.data.tokenizers.write import write

__all__ = [
    "SPECIALS",
    "Tokenizer",
    "Words",
    "byte_tokenizer",
    "check_fits",
    "load",
    "make_tokenizer",
    "numbers",
    "pretrained",
    "write",
]
