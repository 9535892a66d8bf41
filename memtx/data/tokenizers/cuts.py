"""Byte-level BPE as in GPT-2, and the rules by which model families split text into words before merging.

Sources: the tokenizer.json of each family. The names of the rules in GGUF files, and the rule of files without a name, follow
llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import tokenizers as hf
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from memtx.errors import check_known

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _TAIL % "/"


@dataclass(frozen=True)
class Cut:
    """A rule for splitting text.

    steps        the splits, each applied to the pieces of the one before
    gpt2         whether GPT-2's pattern follows them
    whole_words  whether a word that is a token skips the merges
    begins       whether a text starts with `bos`, unless the file decides this
    nfc          whether a text is first normalised to Unicode's form C
    """

    steps: tuple[PreTokenizer, ...] = ()
    gpt2: bool = False
    whole_words: bool = False
    begins: bool = False
    nfc: bool = False


def _matches(pattern: str) -> PreTokenizer:
    """Return a step that separates the matches of a pattern from the rest."""
    return pre_tokenizers.Split(Regex(pattern), "isolated")


_LLAMA = _matches(_WORD + r"\p{N}{1,3}" + _TAIL % "")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CUTS = {
    "gpt-2": Cut(gpt2=True),
    "smollm": Cut((pre_tokenizers.Digits(individual_digits=True),), gpt2=True),
    "qwen2": Cut((_matches(_WORD + r"\p{N}" + _TAIL % ""),), nfc=True),
    "llama-bpe": Cut((_LLAMA,), whole_words=True, begins=True),
    "smaug-bpe": Cut((_LLAMA,)),
    "tekken": Cut((_matches(_CASED),), whole_words=True, begins=True),
    "default": Cut(tuple(map(_matches, (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")))),
}
GGUF_NAMES = {name: name for name in CUTS} | {
    other: name
    for name, others in {
        "gpt-2": ("a.x-4.0", "exaone4", "jais", "mellum", "mpt", "olmo", "phi-2", "trillion"),
        "smollm": ("codeshell", "command-r", "exaone", "minerva-7b", "refact", "starcoder"),
        "qwen2": ("deepseek-r1-qwen", "kormo", "megrez"),
        "llama-bpe": ("falcon3", "llama-v3", "llama3", "midm-2.0", "pixtral"),
        "smaug-bpe": ("dbrx",),
    }.items()
    for other in others
}


def gguf_cut(named: str, architecture: str, tokens: Collection[str]) -> str:
    """Return the name in CUTS of the rule of a GGUF file. Raises UserError if memtx does not know the rule.

    named: the file's tokenizer.ggml.pre, or "default". Old files have no name, and a Qwen2 or Llama 3 among them is recognised
    by its architecture or tokens.
    """
    check_known(named, GGUF_NAMES, "GGUF pre-tokenizer")
    if named == "default" and architecture == "qwen2":
        return "qwen2"
    if named == "default" and "<|begin_of_text|>" in tokens:
        return "llama-bpe"
    return GGUF_NAMES[named]


def byte_bpe(vocab: Mapping[str, int], merges: Sequence[str], cut: Cut, *, add_prefix_space: bool = False) -> hf.Tokenizer:
    """Build a byte-level BPE.

    merges: "left right", best first. add_prefix_space: whether to put a space before a text that starts without one.
    """
    pairs = [tuple(merge.split(" ")) for merge in merges]
    model = hf.Tokenizer(hf.models.BPE(dict(vocab), pairs, ignore_merges=cut.whole_words))  # pyright: ignore[reportArgumentType]
    last = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=cut.gpt2)
    model.pre_tokenizer = pre_tokenizers.Sequence([*cut.steps, last])
    if cut.nfc:
        model.normalizer = normalizers.NFC()
    model.decoder = decoders.ByteLevel()
    return model
