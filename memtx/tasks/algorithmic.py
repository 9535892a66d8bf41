"""Short programs whose variables must be tracked: assignments, increments, conditions, prints (Fan et al. 2020, 2002.09402).

    x = 3 ;  x ++ ;  if x > 2 : y = 7 ;  print y ;     the label on the ";" of a print is the value

A program has 100 statements over 3 or 5 variables, then END. A statement is drawn from = ++ -- if print, and drawn again if it
is not allowed. "=" defines a variable that has no value yet (1 to 10). "++" and "--" keep the value within 1 to 10. All
statements except "=" need a variable with a value. A condition compares a variable with another variable or a number, each with
probability 1/2. The guarded statement is neither a condition nor a print.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Words
from memtx.tasks.base import Example, Task, check, octave

NAMES, LOW, HIGH = "xyzpr", 1, 10
LONGEST = 9  # the largest number of tokens of a statement


class Algorithmic(Task):
    """Programs whose prints ask for a variable's value."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        variables: int = 3  # or 5 in the paper
        statements: int = 100

        def __post_init__(self):
            check(1 <= self.variables <= len(NAMES), f"variables must be from 1 to {len(NAMES)}")
            check(self.statements >= 1, "statements must be at least 1")

    tokenizer: Words = Words(
        "programs", [*NAMES, "=", "++", "--", "if", "print", "<", ">", ":", ";", "END", *map(str, range(LOW, 11))]
    )

    def __init__(self, config: Config):
        super().__init__(config)
        self.length = LONGEST * config.statements + 1

    def example(self, rng):
        words, labels, statement_A, values = [], [], [], {}
        for number in range(self.config.statements):
            statement = None
            while statement is None:
                statement = self._statement(rng, values)
            words += statement
            labels += [NOTHING] * len(statement)
            if statement[0] == "print":
                labels[-1] = self.tokenizer.ids[str(values[statement[1]])]
                statement_A.append(number)
        token_L = self.tokenizer.encode(" ".join([*words, "END"]))
        label_L = np.asarray([*labels, NOTHING], np.int32)
        return Example(
            token_L, label_L, {"variables": self.config.variables, "statement": octave(np.asarray(statement_A, int))}
        )

    def _statement(self, rng, values: dict[str, int], nested: bool = False, runs: bool = True) -> list[str] | None:
        """Draw a statement, and execute it on `values` if `runs` is True. Returns None if the statement is not allowed."""
        kind = ("=", "++", "--", "if", "print")[rng.integers(5)]
        name = NAMES[rng.integers(self.config.variables)]
        if kind == "=":
            number = int(rng.integers(LOW, HIGH + 1))
            if name in values:
                return None
            if runs:
                values[name] = number
            return [name, "=", str(number), ";"]
        if name not in values or (nested and kind in ("if", "print")):
            return None
        if kind == "print":
            return ["print", name, ";"]
        if kind == "if":
            return self._condition(rng, values, name)
        if values[name] == (HIGH if kind == "++" else LOW):
            return None
        if runs:
            values[name] += 1 if kind == "++" else -1
        return [name, kind, ";"]

    def _condition(self, rng, values: dict[str, int], name: str) -> list[str] | None:
        others = [other for other in values if other != name]
        if others and rng.random() < 0.5:
            other = others[rng.integers(len(others))]
            number = values[other]
        else:
            number = int(rng.integers(LOW, HIGH + 1))
            other = str(number)
        less = rng.random() < 0.5
        true = values[name] < number if less else values[name] > number
        guarded = self._statement(rng, values, nested=True, runs=true)
        return guarded and ["if", name, "<" if less else ">", other, ":", *guarded]
