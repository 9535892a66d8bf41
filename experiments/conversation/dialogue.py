"""A conversation of 200 messages: 40 facts told early among real sentences, and 40 questions late."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from memtx.data.corpora import load_corpus

FACTS, MESSAGES, EARLY = 40, 200, 80  # the facts are among the first EARLY messages, the questions are the last FACTS
NAMES = """Ana Boris Carla Dario Elena Felix Greta Hugo Irene Jonas Katya Luca Marta Nils Olga Pedro Quinn Rosa Stefan Tessa
Umar Vera Walter Xenia Yusuf Zoe Arthur Bella Cyrus Dora Edgar Fiona Gustav Helga Ivan Judith Karim Lena Miguel Nora"""
KINDS = [  # (a fact, its question, the values)
    ("{name} lives in {value}.", "Where does {name} live?", "Lisbon Oslo Cairo Lima Kyoto Denver Prague Nairobi Dublin Havana"),
    (
        "{name} works as a {value}.",
        "What does {name} work as?",
        "baker pilot nurse lawyer farmer painter plumber judge dentist tailor",
    ),
    (
        "{name} plays the {value}.",
        "Which instrument does {name} play?",
        "violin cello flute harp trumpet drums guitar oboe banjo organ",
    ),
    ("{name} has a dog called {value}.", "What is {name}'s dog called?", "Bruno Rex Luna Max Bella Rocky Coco Milo Daisy Toby"),
    (
        "{name}'s favourite colour is {value}.",
        "What is {name}'s favourite colour?",
        "red green blue yellow purple orange black white pink brown",
    ),
    (
        "{name} was born in {value}.",
        "In which month was {name} born?",
        "January February March April May June July August October December",
    ),
    (
        "{name} drives a {value} car.",
        "What car does {name} drive?",
        "Toyota Ford Fiat Volvo Honda Mazda Skoda Renault Nissan Opel",
    ),
    (
        "{name} is allergic to {value}.",
        "What is {name} allergic to?",
        "peanuts milk wheat eggs shellfish soy pollen wool latex honey",
    ),
]


@dataclass(frozen=True)
class Fact:
    """A statement, its question, and the word that answers it."""

    statement: str
    question: str
    value: str


def make_facts(rng: Random) -> list[Fact]:
    """Return FACTS facts: two about each of 20 people, of different kinds."""
    facts = []
    for name in rng.sample(NAMES.split(), FACTS // 2):
        for statement, question, values in rng.sample(KINDS, 2):
            value = rng.choice(values.split())
            facts.append(Fact(statement.format(name=name, value=value), question.format(name=name), value))
    rng.shuffle(facts)
    return facts


def make_messages(facts: list[Fact], rng: Random) -> list[str]:
    """Return the messages before the questions: the facts among the first EARLY, and sentences of speeches elsewhere."""
    count = MESSAGES - FACTS
    messages: list[str] = rng.sample(sentences(), count)
    for at, fact in zip(sorted(rng.sample(range(EARLY), FACTS)), facts, strict=True):
        messages[at] = fact.statement
    return messages


def sentences() -> list[str]:
    """Return the statements of 6 to 20 words in the held-out State of the Union addresses."""
    texts = [text for _, text in load_corpus("speeches", "").documents("test")]
    found = {" ".join(part.split()) for text in texts for part in re.split(r"(?<=[.!?])\s+", text)}
    return sorted(part for part in found if part.endswith(".") and 6 <= len(part.split()) <= 20)


def is_right(answer: str, fact: Fact) -> bool:
    """Return whether an answer has the word that it should have."""
    return re.search(rf"\b{re.escape(fact.value)}\b", answer, re.IGNORECASE) is not None
