"""BABILong: the facts of a small story, scattered over unrelated text (Kuratov et al. 2024, 2406.10149).

qa1  Where is Mary?                      one fact         qa4  What is north of the office?        two relations
qa2  Where is the football?              two facts        qa5  Who gave the milk to Fred?          three-argument relations
qa3  Where was the football before the kitchen?   three facts

A simulator in this file draws the stories in the style of bAbI (Weston et al. 2015), so nothing is downloaded. The facts keep
their order and are inserted at random positions between background sentences, up to `length` bytes. Then comes the question.
The labels are its one-word answer. `background` is `noise` (generated sentences) or the path of a text file. Sentences of at
least ten words are read from the file, starting at a random one (the benchmark uses PG-19). The benchmark searches for the
answer in generated text. We measure exact match.
"""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from memtx.errors import UserError, check_known
from memtx.files.cache import absolute
from memtx.tasks.base import TextTask, check, tenth
from memtx.tasks.words import adjectives, insert, nouns, pick, verbs

PLACES = ["bathroom", "bedroom", "garden", "hallway", "kitchen", "office"]
THINGS = ["apple", "football", "milk"]
WALKERS, GIVERS = ["Daniel", "John", "Mary", "Sandra"], ["Bill", "Fred", "Jeff", "Mary"]
GO = ["moved to", "went to", "journeyed to", "travelled to", "went back to"]
TAKE, DROP = ["got", "took", "picked up", "grabbed"], ["put down", "dropped", "left", "discarded"]
GIVE = ["gave", "handed", "passed"]
TRIES = 1000
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


class Story(NamedTuple):
    """Facts, a question about them, and its one-word answer."""

    facts: list[str]
    question: str
    answer: str


class Babilong(TextTask):
    """Questions about facts that are scattered over background text."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        tasks: tuple = ("qa1",)  # each example draws one of these
        length: int = 1024  # bytes
        facts: int = 8  # the largest number of facts (qa2 and qa3 add facts until a question is possible)
        background: str = "noise"  # noise, or the path of a text file

        def __post_init__(self):
            check(len(self.tasks) > 0, "tasks must name at least one task")
            for task in self.tasks:
                check_known(task, STORIES, "task")
            check(self.facts >= 2, "facts must be at least 2")
            if self.background != "noise":
                sentences(self.background)
            Babilong(self).example(np.random.default_rng(0))  # raises now if length is too short

    def example(self, rng):
        task = self.config.tasks[rng.integers(len(self.config.tasks))]
        for _ in range(TRIES):  # stories of qa3 can be long
            story = STORIES[task](rng, int(rng.integers(2, self.config.facts + 1)))
            end = f"\n{story.question} Answer:"
            bare = " ".join(story.facts) + end + " " + story.answer
            if len(bare) <= self.length:
                break
        room = self.room(bare)
        hay = self._background(rng, room)
        positions = np.sort(rng.integers(len(hay) + 1, size=len(story.facts)))
        text = " ".join(insert(hay, positions, story.facts))
        depth = tenth(text.rindex(story.facts[-1]) / len(text))
        return self.build_example(text + end, " " + story.answer, task=task, length=self.length, depth=depth)

    def _background(self, rng, room: int) -> list[str]:
        """Return as many sentences as fit into `room` bytes, counting one space for each."""
        book = None if self.config.background == "noise" else sentences(self.config.background)
        at = int(rng.integers(len(book))) if book else 0
        hay = []
        while True:
            sentence = book[(at + len(hay)) % len(book)] if book else noise(rng)
            room -= len(sentence.encode()) + 1
            if room < 0:
                return hay
            hay.append(sentence)


# --- stories: (rng, count) -> Story with about `count` facts ------------------------------------------------------------------


def where_is_someone(rng, count: int) -> Story:
    """Draw a story for qa1: where is this person?"""
    at, facts = {}, []
    for _ in range(count):
        facts.append(walk(rng, at))
    person = pick(rng, list(at))
    return Story(facts, f"Where is {person}?", at[person])


def where_is_something(rng, count: int) -> Story:
    """Draw a story for qa2: where is this thing?"""
    facts, seen = move_things(rng, count, least=1)
    thing = pick(rng, [thing for thing, places in seen.items() if places])
    return Story(facts, f"Where is the {thing}?", seen[thing][-1])


def where_was_something(rng, count: int) -> Story:
    """Draw a story for qa3: where was this thing before?"""
    facts, seen = move_things(rng, count, least=2)
    thing = pick(rng, [thing for thing, places in seen.items() if len(places) >= 2])
    last = {place: i for i, place in enumerate(seen[thing])}  # the answer is the place before the last stay in `place`
    place = pick(rng, [place for place, i in last.items() if i > 0])
    return Story(facts, f"Where was the {thing} before the {place}?", seen[thing][last[place] - 1])


def what_lies_where(rng, count: int) -> Story:
    """Draw a story for qa4: which place lies in this direction? `count` is ignored, because a story has two facts."""
    middle, *ends = rng.permutation(PLACES)[:3]
    pair = [("north", "south"), ("east", "west")][rng.integers(2)]
    ways = [pair[i] for i in rng.permutation(2)]
    facts = [f"The {end} is {way} of the {middle}." for end, way in zip(ends, ways, strict=True)]
    asked = rng.integers(2)
    if rng.integers(2):
        return Story(facts, f"What is {ways[asked]} of the {middle}?", str(ends[asked]))
    return Story(facts, f"What is the {middle} {OPPOSITE[ways[asked]]} of?", str(ends[asked]))


def who_gave_what(rng, count: int) -> Story:
    """Draw a story for qa5: who gave this thing to whom?"""
    at, facts = {}, []
    gift = ("", "", "")
    while len(facts) < count or not gift[0]:
        if gift[0] and len(facts) < count - 1 and rng.integers(2):
            facts.append(walk(rng, at, GIVERS))
            continue
        giver, taker = map(str, rng.permutation(GIVERS)[:2])
        gift = (giver, pick(rng, THINGS), taker)
        facts.append(f"{giver} {pick(rng, GIVE)} the {gift[1]} to {taker}.")
    giver, thing, taker = gift  # the last gift, so that no later one changes the answer
    questions = [
        (f"What did {giver} give to {taker}?", thing),
        (f"Who gave the {thing} to {taker}?", giver),
        (f"Who gave the {thing}?", giver),
        (f"Who received the {thing}?", taker),
        (f"Who did {giver} give the {thing} to?", taker),
    ]
    return Story(facts, *questions[rng.integers(len(questions))])


STORIES = {
    "qa1": where_is_someone,
    "qa2": where_is_something,
    "qa3": where_was_something,
    "qa4": what_lies_where,
    "qa5": who_gave_what,
}


def walk(rng, at: dict[str, str], people: list[str] = WALKERS) -> str:
    """Return the fact that a person goes to another place, and record it in `at`."""
    person = pick(rng, people)
    place = pick(rng, [place for place in PLACES if place != at.get(person)])
    at[person] = place
    return f"{person} {pick(rng, GO)} the {place}."


def move_things(rng, count: int, least: int) -> tuple[list[str], dict[str, list[str]]]:
    """Return at least `count` facts, and the places of each thing in order. One thing has at least `least` places."""
    at: dict[str, str] = {}
    holder: dict[str, str] = {}
    facts: list[str] = []
    seen: dict[str, list[str]] = {thing: [] for thing in THINGS}
    while len(facts) < count or not any(len(places) >= least for places in seen.values()):
        action = rng.integers(3)
        if action == 0 or not at:
            facts.append(walk(rng, at))
            for thing, person in holder.items():
                if seen[thing][-1] != at[person]:
                    seen[thing].append(at[person])
        elif action == 1:
            person = pick(rng, list(at))
            free = [t for t in THINGS if t not in holder and (not seen[t] or seen[t][-1] == at[person])]
            if free:
                thing = pick(rng, free)
                holder[thing] = person
                if not seen[thing]:
                    seen[thing].append(at[person])
                facts.append(f"{person} {pick(rng, TAKE)} the {thing} there.")
        elif holder:
            thing = pick(rng, list(holder))
            facts.append(f"{holder.pop(thing)} {pick(rng, DROP)} the {thing}.")
    return facts, seen


# --- background ---------------------------------------------------------------------------------------------------------------


def noise(rng) -> str:
    """Draw a sentence of at least ten words that is unrelated to all stories."""
    a, b, c = (f"{pick(rng, adjectives)} {pick(rng, nouns)}" for _ in range(3))
    return f"Once more the {a} would {pick(rng, verbs)} the {b} and {pick(rng, verbs)} near the {c}."


@lru_cache
def sentences(path: str) -> list[str]:
    """Return the sentences of a text file that have at least ten words. Raises UserError if there are none."""
    try:
        text = absolute(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read data.task.background: {error}") from None
    found = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", text)]
    found = [sentence for sentence in found if len(sentence.split()) >= 10]
    if not found:
        raise UserError(f"data.task.background: {path} has no sentence of ten words or more")
    return found
