"""A conversation that remembers its beginning

A user writes 200 messages to SmolLM2 (135 M parameters, from PyPI). Among the first 80 are 40 facts about 20 people, in random
places among real sentences from speeches. The last 40 messages ask for these facts, in random order. The answer counts if it
has the right word. After half of the messages, the conversation is opened again from its folder. `none` has no memory.
`window` repeats the latest messages in the prompt, up to 256 tokens. `sentences` quotes at most 4 sentences that MiniLM finds
nearest to the question, which is much shorter. `entries` reads all messages into a kNN-LM head of SmolLM2 instead.

At the end, a quarter of the facts are forgotten and asked for again. `forgotten` is the share that is still answered.

The claim: a memory answers questions about messages that are far outside the window.
"""

import tempfile
from pathlib import Path
from random import Random

from dialogue import FACTS, MESSAGES, Fact, is_right, make_facts, make_messages

import memtx
from memtx.chat import Chat, Settings
from memtx.chat.conversation import Turn
from memtx.sweep import product

WAYS = ("none", "window", "sentences", "entries")
OTHERS = 4  # one of so many facts is forgotten

config = "configs/pretrained.py:backbone=smollm2"
train = False


def sweep():
    return product({"seed": [0, 1, 2]})


def run(config, workdir):
    """Return the share of right answers for each way to remember, before and after forgetting, and the lengths of prompts."""
    rng = Random(config.seed)
    facts = make_facts(rng)
    messages = make_messages(facts, rng)
    asked = rng.sample(facts, FACTS)
    model, result = memtx.load("smollm2"), {}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            chat = converse(Path(folder) / "library", make_settings(way), messages, None if way == "entries" else model)
            right, tokens = ask(chat, asked)
            result[f"eval/accuracy/way={way}"] = right
            result[f"prompt_tokens/way={way}"] = tokens
            if way in ("sentences", "entries"):
                gone = asked[::OTHERS]
                for fact in gone:
                    [name] = [document.name for document in chat.library.documents if document.text == fact.statement]
                    chat.forget(name)
                result[f"forgotten/way={way}"] = ask(chat, gone)[0]
                result[f"kept/way={way}"] = ask(chat, [fact for fact in asked if fact not in gone])[0]
    return result


def make_settings(way: str) -> Settings:
    """Return the settings of a way to remember."""
    sizes = {"passages": 4 * (way == "sentences"), "around": 0, "window": 256 * (way == "window")}
    return Settings(kind="entries" if way == "entries" else "", max_tokens=32, acknowledge="", **sizes)


def converse(folder: Path, settings: Settings, messages: list[str], model) -> Chat:
    """Return the conversation after these messages. It is opened again after half of them."""
    half = MESSAGES // 2
    first = Chat(folder, settings, model=model)
    for message in messages[:half]:
        first.tell(message)
    chat = Chat(folder, settings, model=model)
    for message in messages[half:]:
        chat.tell(message)
    chat.turns = [Turn(chat.namespace, message, "I see.", frozenset()) for message in messages]  # of both halves
    return chat


def ask(chat: Chat, facts: list[Fact]) -> tuple[float, float]:
    """Return the share of right answers, and how many tokens of other messages were in the prompts on average."""
    right, tokens, turns = 0, 0, chat.turns
    for fact in facts:
        chat.turns = [*turns]  # a question does not depend on those before it
        shown = [part for turn in chat._window() for part in (turn.message, turn.answer)]
        answer = chat.say(fact.question)
        right += is_right(answer.text, fact)
        shown += [source.text or "" for source in answer.sources]
        tokens += sum(len(chat.model.tokenizer.encode(text)) for text in shown)
    chat.turns = turns
    return right / len(facts), tokens / len(facts)


report = {
    "columns": {
        **{way: f"eval/accuracy/way={way}" for way in WAYS},
        **{f"{way}, forgotten": {"metric": f"forgotten/way={way}", "better": "lower"} for way in WAYS[2:]},
        **{f"{way}, kept": {"metric": f"kept/way={way}", "better": "higher"} for way in WAYS[2:]},
        **{f"tokens, {way}": {"metric": f"prompt_tokens/way={way}", "better": "lower"} for way in WAYS[1:3]},
    },
}


def claims(table):
    mean = {name: table[name].mean for name in report["columns"]}
    yield "quoted sentences answer more than a window by 0.5", mean["sentences"] > mean["window"] + 0.5
    yield "they add fewer tokens to the prompt than the window", mean["tokens, sentences"] < mean["tokens, window"]
    yield "a kNN-LM head answers more than no memory by 0.1", mean["entries"] > mean["none"] + 0.1
    yield (
        "a forgotten fact is answered no more often than without a memory, within 0.1",
        mean["sentences, forgotten"] <= mean["none"] + 0.1,
    )
    yield "the other facts are still answered, within 0.1", mean["sentences, kept"] >= mean["sentences"] - 0.1
