"""RULER: needles, variables and word counts in text of a given length (Hsieh et al. 2024, 2404.06654).

niah_single_1    one number in repeated sentences       niah_multikey_2  a number among needles
niah_multivalue  four numbers of one key                niah_multikey_3  a uuid among needles, keys are uuids
niah_multiquery  queries for four keys                  vt   variables assigned to each other, over four hops
cwe  the ten most frequent words of a list              fwe  the three most frequent coded words (the k-th occurs ~ k^-2 times)

These are the tasks of the benchmark that need no data. The prompts come from the benchmark (Apache-2.0), without the few-shot
examples of vt and cwe. Answers have a fixed order: that of the question and then of the text (needles, cwe), of the chain (vt)
or of the counts (fwe). The benchmark searches for each answer in generated text, in any order. The haystack of multivalue and
multiquery consists of repeated sentences, not essays. Depths are linspace(0, 100, 40).
"""

from __future__ import annotations

import dataclasses
import math
import string
from itertools import pairwise

import numpy as np

from memtx.errors import check_known
from memtx.tasks.base import TextTask, check, tenth
from memtx.tasks.words import GRASS, adjectives, insert, nouns, pick, verbs

NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} "
    "afterwards.\n{context}\nWhat is the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text is"
)
MANY = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind}s afterwards.\n{context}\nWhat are all the special magic {kind}s for {query} mentioned in the provided text? "
    "The special magic {kind}s for {query} mentioned in the provided text are"
)
VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above. Answer: According to the chain(s) of "
    "variable assignment in the text above, {count} variables are assigned the value {query}, they are:"
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most "
    "often.\n{context}\nQuestion: What are the 10 most common words in the above list? "
    "Answer: The top 10 words that appear most often in the list are:"
)
FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded "
    "words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
    "frequently appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)
NEEDLES = {  # keys, values of each, queried keys, whether keys and values are uuids, whether the haystack consists of needles
    "niah_single_1": (1, 1, 1, False, False),
    "niah_multikey_2": (1, 1, 1, False, True),
    "niah_multikey_3": (1, 1, 1, True, True),
    "niah_multivalue": (1, 4, 1, False, False),
    "niah_multiquery": (4, 1, 4, False, False),
}


class Ruler(TextTask):
    """The tasks of RULER. `task` selects one."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        task: str = "niah_single_1"
        length: int = 2048  # bytes, including the answer
        chains: int = 1  # of vt
        hops: int = 4
        common: int = 30  # of cwe: occurrences of each of the ten words
        others: int = 3  # of cwe: occurrences of every other word

        def __post_init__(self):
            check_known(self.task, [*NEEDLES, "vt", "cwe", "fwe"], "task")
            check(min(self.chains, self.hops) >= 1, "chains and hops must be at least 1")
            check(self.common > self.others >= 1, "common must be above others, and others at least 1")
            Ruler(self).example(np.random.default_rng(0))  # raises now if length is too short

    def example(self, rng):
        task = self.config.task
        prompt, answers, depth = self._needles(rng) if task in NEEDLES else getattr(self, f"_{task}")(rng)
        slices = {"task": task, "length": self.length} | ({} if depth is None else {"depth": depth})
        return self.build_example(prompt, " " + ", ".join(answers), **slices)

    def _needles(self, rng):
        keys, values, queries, uuids, among = NEEDLES[self.config.task]
        kind, make = ("uuid", uuid) if uuids else ("number", number)

        def needle(key: str) -> tuple[str, str]:
            value = make(rng)
            return NEEDLE.format(kind=kind, key=key, value=value), value

        def name() -> str:
            return uuid(rng) if uuids else f"{pick(rng, adjectives)}-{pick(rng, nouns)}"

        asked: dict[str, None] = {}
        while len(asked) < keys:
            asked[name()] = None
        found = [(key, *needle(key)) for key in asked for _ in range(values)]
        found = [found[i] for i in rng.permutation(len(found))]
        query = join(list(asked)[:queries])
        template = MANY if len(found) > 1 else ONE

        def prompt(lines: list[str]) -> str:
            return template.format(kind=kind, query=query, context="\n".join(lines))

        answers = [value for _, _, value in sorted(found, key=lambda f: list(asked).index(f[0]))]
        lines = [line for _, line, _ in found]
        room, hay = self.room(prompt(lines) + " " + ", ".join(answers)), []
        while True:
            other = name() if among else ""
            line = needle(other)[0] if among else GRASS
            room -= len(line) + 1
            if room < 0:
                break
            if other not in asked:
                hay.append(line)
        depths = np.sort(rng.choice(np.linspace(0, 1, 40), len(found), replace=False))
        depth = tenth(depths[0]) if len(found) == 1 else None
        return prompt(insert(hay, (depths * len(hay)).astype(int), lines)), answers, depth

    def _vt(self, rng):
        c = self.config
        names: dict[str, None] = {}
        while len(names) < c.chains * (c.hops + 1):
            names["".join(rng.choice(list(string.ascii_uppercase), 5))] = None
        chains = np.reshape(list(names), (c.chains, c.hops + 1)).tolist()
        values = 10_000 + rng.choice(89_999, c.chains, replace=False)  # np.random.randint(10000, 99999)
        lines = [
            [f"VAR {chain[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(chain))]
            for chain, value in zip(chains, values, strict=True)
        ]
        turns = rng.permutation(np.repeat(np.arange(c.chains), c.hops + 1))  # the chain of each line
        queues = [iter(chain) for chain in lines]
        statements = [next(queues[turn]) for turn in turns]

        def prompt(context: list[str]) -> str:
            return VT.format(context="\n".join(context), query=values[0], count=c.hops + 1)

        room = self.room(prompt(statements) + " " + ", ".join(chains[0]))
        hay = [GRASS] * (room // (len(GRASS) + 1))
        positions = np.sort(rng.integers(len(hay) + 1, size=len(statements)))
        return prompt(insert(hay, positions, statements)), chains[0], None

    def _cwe(self, rng):
        c = self.config
        pool = rng.permutation(adjectives + nouns + verbs).tolist()
        top, pool = pool[:10], pool[10:]

        def size(others: list[str]) -> int:
            words = top * c.common + others * c.others
            numbering = sum(len(f"{i + 1}. ") + 1 for i in range(len(words)))
            return len(CWE) + sum(map(len, words)) + numbering + sum(len(word) + 2 for word in top)

        others: list[str] = []
        while pool and size([*others, pool[0]]) <= self.length:
            others.append(pool.pop(0))
        check(len(others) > 0, f"length={self.length} is too short for cwe: it needs {size(pool[:1])} bytes; or lower common")
        words = rng.permutation(top * c.common + others * c.others).tolist()
        context = " ".join(f"{i + 1}. {word}" for i, word in enumerate(words))
        return CWE.format(context=context), sorted(top, key=words.index), None

    def _fwe(self, rng):
        ranks = max(self.length // 50, 4)
        room = self.room(FWE.format(context="") + " aaaaaa, bbbbbb, cccccc")
        total = room // 7
        count_R = np.floor(total * np.arange(1.0, ranks + 1) ** -2 / (math.pi**2 / 6)).astype(int)
        check(count_R[3] >= 1 and count_R[2] > count_R[3], f"length={self.length} is too short for fwe")
        words: dict[str, None] = {}
        while len(words) < ranks:
            words["".join(rng.choice(list(string.ascii_lowercase), 6))] = None
        coded = ["...", *list(words)[1:]]
        text = rng.permutation(np.repeat(coded, count_R)).tolist()
        return FWE.format(context=" ".join(text)), coded[1:4], None


def number(rng) -> str:
    """Draw a number of seven digits."""
    return str(rng.integers(1_000_000, 10_000_000))


def uuid(rng) -> str:
    """Draw a uuid."""
    digits = rng.bytes(16).hex()
    return "-".join(digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def join(words: list[str]) -> str:
    """Join words with commas and a last "and"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + ", and " + words[-1]
