"""Labels are right: a solver written by hand, which sees the tokens alone, solves every example of every task."""

import math
import re
from itertools import repeat

import numpy as np
import pytest

from memtx.tasks import TASKS

EXAMPLES = 25


# --- solvers: (task, example) -> the expected labels, in order --------------------------------------------------------


def words(task, example) -> list[str]:
    return task.tokenizer.decode(example.token_L).split()


def asked(example) -> np.ndarray:
    return np.flatnonzero(example.label_L >= 0)


def by_last_value(task, example):
    c, token = task.config, example.token_L.tolist()
    pairs = example.slices.get("pairs", getattr(c, "pairs", 0)) + getattr(c, "updates", 0)
    value = {token[i]: token[i + 1] for i in range(0, 2 * pairs, 2)}
    return [value[token[i]] for i in asked(example)]


def by_two_keys(task, example):
    token = example.token_L.tolist()
    value = {(token[i], token[i + 1]): token[i + 2] for i in range(0, 3 * task.config.pairs, 3)}
    return [value[token[i - 1], token[i]] for i in asked(example)]


def by_blocks(task, example):
    *blocks, question = " ".join(words(task, example)).split(" eos ")
    value = dict(block.split(" sep ") for block in blocks)
    return task.tokenizer.encode(f"gen {value[question.split(' gen ')[0]]} eos").tolist()


def by_copying(task, example):
    seen = words(task, example)
    items = [word for word in seen[: seen.index("?")] if word != "."]
    if task.config.kind == "copy":
        items *= task.config.repeats
    return task.tokenizer.encode(" ".join(items[::-1] if task.config.kind == "reverse" else items)).tolist()


def after_the_mark(task, example):
    seen = words(task, example)
    return task.tokenizer.encode(seen[seen.index("S") + 1]).tolist()


def after_the_key(task, example):
    seen = words(task, example)
    return task.tokenizer.encode(seen[seen.index("K") + 2]).tolist()


def by_running(task, example):
    values, printed = {}, []

    def run(statement):
        match statement.split():
            case ["if", a, sign, b, ":", *rest]:
                left, right = values[a], values[b] if b in values else int(b)
                if left < right if sign == "<" else left > right:
                    run(" ".join(rest))
            case ["print", a]:
                printed.append(str(values[a]))
            case [a, "=", number]:
                assert a not in values
                values[a] = int(number)
            case [a, "++"]:
                values[a] += 1
            case [a, "--"]:
                values[a] -= 1

    *statements, end = " ".join(words(task, example)).split(" ; ")
    assert end == "END"
    for statement in statements:
        run(statement)
        assert all(1 <= value <= 10 for value in values.values())
    return task.tokenizer.encode(" ".join(printed)).tolist()


def by_watching(task, example):
    seen, met, out = words(task, example), {}, []
    for i in range(0, len(seen), 8):
        r1, c1, hue1, r2, c2, hue2, ask1, ask2 = (re.sub(r"\D", "", word) for word in seen[i : i + 8])
        if (r1, c1) == (r2, c2):
            met[hue1, hue2] = 2 * (int(r1) >= 8) + (int(c1) >= 8)
        if (ask1, ask2) in met:
            out.append(task.tokenizer.ids[f"quadrant{met[ask1, ask2]}"])
    return out


def by_finding(task, example):
    text = "".join(words(task, example))
    n, size = task.config.ngram, task.config.answer or 1000
    if task.config.kind == "copy":
        answer = re.match(r"\$(\w+)\|", text)[1][:size]
    elif task.config.kind == "prefix":
        gram, x = re.match(r"\$(\w+)\|(\w+)\|", text).groups()
        answer = x.split(gram, 1)[1][:size]
    else:
        x, gram = re.match(rf"\$(\w+)\|(\w{{{n}}})", text).groups()
        answer = x.split(gram, 1)[1][:size]
    return task.tokenizer.encode(" ".join([*answer, "."])).tolist()


def by_recalling(task, example):
    low = (task.vocabulary - (16 if task.config.kind == "noisy" else 0)) // 2
    high = 2 * low + (task.vocabulary - 2 * low - 16 if task.config.kind == "noisy" else 16)
    runs, out = [], []  # of tokens of one kind: key, value or noise
    token = example.token_L.tolist()
    kinds = ["key" if t < low else "value" if t < high else "noise" for t in token]
    for kind, t in zip(kinds, token, strict=True):
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(t)
    value = {}
    for (_, key), (kind, found) in zip(runs, [*runs[1:], ("", [])], strict=True):
        if kind == "value":
            if tuple(key) in value:
                out += value[tuple(key)]
            value.setdefault(tuple(key), found)
    last_key = tuple(runs[-1][1]) if runs[-1][0] == "key" else None
    out += value.get(last_key, []) if last_key else []
    return out[: len(asked(example))]


def by_unblanking(task, example):
    token, v = example.token_L.tolist(), task.vocabulary
    return [t for t in token[: token.index(v - 1)] if t != v - 2]


def by_heart(task, example):
    def facts(other):
        at = asked(other)
        return zip(map(key, repeat(other.token_L), at), other.label_L[at].tolist(), strict=True)

    def key(token_L, at):
        return tuple(token_L[at - task.config.key_tokens : at].tolist())

    learned = dict(fact for index in range(200) for fact in facts(task.draw(0, "train", index)))
    return [learned[key(example.token_L, at)] for at in asked(example)]


def text_of(task, example) -> str:
    return task.tokenizer.decode(example.token_L[: asked(example)[0] + 1])


def answer(text):
    def solve(task, example):
        return task.tokenizer.encode(" " + text(text_of(task, example))).tolist()

    return solve


def passkey(text):
    return re.search(r"The pass key is (\d+)\. Remember it\. \1 is", text)[1]


def phonebook(text):
    return re.search(rf"{text.splitlines()[-1]} (\d+)\n", text)[1]


def needles(text):
    query = re.search(r"\nWhat (?:is|are all) the special magic \w+ for (.*?) mentioned", text)[1]
    found = [v for key in re.split(r", and |, ", query) for v in re.findall(rf"for {key} is: ([\w-]+)\.", text)]
    return ", ".join(found)


def variables(text):
    value = re.search(r"value (\d+) in the text", text)[1]
    names = [re.search(rf"VAR (\w+) = {value}\n", text)[1]]
    while match := re.search(rf"VAR (\w+) = VAR {names[-1]} \n", text):
        names.append(match[1])
    return ", ".join(names)


def common(text):
    listed = re.findall(r"\d+\. ([a-z]+)", text)
    top = sorted(set(listed), key=listed.count)[-10:]
    return ", ".join(sorted(top, key=listed.index))


def frequent(text):
    coded = re.findall(r"(?<= )[a-z]{6}(?= |\n)", text[text.index("coded words. ") : text.index("\nQuestion")] + "\n")
    return ", ".join(sorted(set(coded), key=coded.count, reverse=True)[:3])


def story(text):
    """Follow people and things through a story and ignore sentences that are not facts."""
    at, holder, places, gifts, relations = {}, {}, {}, [], []
    *_, question = text.splitlines()
    for fact in re.split(r"(?<=\.) ", text.splitlines()[0]):
        if m := re.fullmatch(r"(\w+) (?:moved|went|journeyed|travelled|went back) to the (\w+)\.", fact):
            at[m[1]] = m[2]
            for thing in (thing for thing, person in holder.items() if person == m[1]):
                places[thing].append(m[2])
        elif m := re.fullmatch(r"(\w+) (?:got|took|picked up|grabbed) the (\w+) there\.", fact):
            assert places.get(m[2], [at[m[1]]])[-1] == at[m[1]]  # it lies where they are
            holder[m[2]] = m[1]
            places.setdefault(m[2], [at[m[1]]])
        elif m := re.fullmatch(r"(\w+) (?:put down|dropped|left|discarded) the (\w+)\.", fact):
            assert holder.pop(m[2]) == m[1]
        elif m := re.fullmatch(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.", fact):
            gifts.append(m.groups())
        elif m := re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", fact):
            relations.append(m.groups())
    opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}
    if m := re.match(r"Where is the (\w+)\?", question):
        return places[m[1]][-1]
    if m := re.match(r"Where is (\w+)\?", question):
        return at[m[1]]
    if m := re.match(r"Where was the (\w+) before the (\w+)\?", question):
        seen = places[m[1]]
        return seen[len(seen) - 1 - seen[::-1].index(m[2]) - 1]
    if m := re.match(r"What is (\w+) of the (\w+)\?", question):
        return next(a for a, way, b in relations if (way, b) == m.groups())
    if m := re.match(r"What is the (\w+) (\w+) of\?", question):
        return next(a for a, way, b in relations if (b, opposite[way]) == m.groups())
    for pattern, of in (
        (r"What did (?P<a>\w+) give to (?P<c>\w+)\?", 1),
        (r"Who gave the (?P<b>\w+) to (?P<c>\w+)\?", 0),
        (r"Who gave the (?P<b>\w+)\?", 0),
        (r"Who received the (?P<b>\w+)\?", 2),
        (r"Who did (?P<a>\w+) give the (?P<b>\w+) to\?", 2),
    ):
        if m := re.match(pattern, question):
            known = {"abc".index(name): value for name, value in m.groupdict().items()}
            return next(gift[of] for gift in gifts[::-1] if all(gift[i] == value for i, value in known.items()))
    raise AssertionError(question)


CASES = [
    ("mqar", {}, by_last_value),
    ("mqar", {"filler": "zoology", "vocabulary": 64}, by_last_value),
    ("mqar", {"mix": ((64, 4, 1), (128, 32, 1)), "filler": "safe", "vocabulary": 99}, by_last_value),
    ("forgetting", {"filler": "safe"}, by_last_value),
    ("compositional", {"pairs": 9, "vocabulary": 40}, by_two_keys),
    ("associative", {}, by_blocks),
    ("associative", {"pairs": 40, "key_size": 2, "value_size": 3}, by_blocks),
    ("associative", {"pairs": 40, "rewrite": True, "vary": False}, by_blocks),
    ("associative", {"pairs": 2, "alphabet": 3, "vary": False}, by_blocks),
    *[("copying", {"kind": kind}, by_copying) for kind in ("copy", "reverse", "selective")],
    ("induction", {}, after_the_mark),
    ("needle", {}, after_the_key),
    ("algorithmic", {}, by_running),
    ("algorithmic", {"variables": 5}, by_running),
    ("object_collision", {}, by_watching),
    *[("ngram", {"kind": kind}, by_finding) for kind in ("copy", "prefix", "suffix")],
    ("ngram", {"kind": "suffix", "answer": 4, "letters": 5}, by_finding),
    *[("mad", {"kind": kind}, by_recalling) for kind in ("recall", "noisy", "fuzzy")],
    *[("mad", {"kind": kind}, by_unblanking) for kind in ("copying", "compression")],
    ("mad", {"kind": "memorization"}, by_heart),
    ("mad", {"kind": "memorization", "key_tokens": 2, "vocabulary": 17}, by_heart),
    ("passkey", {}, answer(passkey)),
    ("phonebook", {}, answer(phonebook)),
    *[
        ("ruler", {"task": f"niah_{kind}"}, answer(needles))
        for kind in ("single_1", "multikey_2", "multikey_3", "multivalue", "multiquery")
    ],
    ("ruler", {"task": "vt", "chains": 3}, answer(variables)),
    ("ruler", {"task": "cwe", "length": 6000}, answer(common)),
    ("ruler", {"task": "fwe"}, answer(frequent)),
    *[("babilong", {"tasks": (f"qa{n}",)}, answer(story)) for n in range(1, 6)],
]
NAMES = [f"{name} {' '.join(map(str, settings.values()))}".strip() for name, settings, _ in CASES]


def make(name, settings):
    return TASKS[name](TASKS[name].Config(**settings))


@pytest.mark.parametrize(("name", "settings", "solve"), CASES, ids=NAMES)
def test_a_solver_by_hand_gets_every_label_right(name, settings, solve):
    task = make(name, settings)
    answers = set()
    for index in range(EXAMPLES):
        example = task.draw(0, "train", index)
        right = example.label_L[asked(example)].tolist()
        assert solve(task, example) == right
        answers.add(tuple(right))
    assert len(answers) > 3  # a constant answer needs no memory


def test_every_task_has_a_solver():
    assert {name for name, *_ in CASES} | {"labelled", "pairs", "spans", "turns"} == set(TASKS)  # whose labels are in files


@pytest.mark.parametrize(("name", "settings"), [case[:2] for case in CASES], ids=NAMES)
def test_examples_are_what_they_declare(name, settings):
    task = make(name, settings)
    for index in range(5):
        example = task.draw(3, "valid", index)
        assert example.token_L.dtype == example.label_L.dtype == np.int32
        assert example.token_L.shape == example.label_L.shape
        assert 0 < len(example.token_L) <= task.length
        assert 0 <= example.token_L.min() <= example.token_L.max() < task.tokenizer.vocab_size
        assert -1 <= example.label_L.min() <= example.label_L.max() < task.tokenizer.vocab_size
        count = len(asked(example))
        assert all(np.ndim(value) == 0 or len(value) == count for value in example.slices.values())
        assert example.scored_A is None or len(example.scored_A) == count
        if task.block:
            assert len(example.token_L) % task.block == task.block - 1  # the last token is only asked for


@pytest.mark.parametrize(("name", "settings"), [case[:2] for case in CASES], ids=NAMES)
def test_an_example_depends_on_seed_split_stage_and_index_and_nothing_else(name, settings):
    def drawn(*place):
        example = make(name, settings).draw(*place)
        return (example.token_L.tolist(), example.label_L.tolist())

    np.random.default_rng(0)
    first = drawn(0, "train", 7)
    np.random.seed(5)
    assert drawn(0, "train", 7) == first
    others = [drawn(1, "train", 7), drawn(0, "valid", 7), drawn(0, "test", 7), drawn(0, "train", 8), drawn(0, "train", 7, 1)]
    assert first not in others


# --- properties of single tasks ---------------------------------------------------------------------------------------------


def test_the_needle_cannot_be_found_within_a_window_shorter_than_its_distance():
    task = make("needle", {})
    examples = [task.draw(0, "train", index) for index in range(400)]
    for window, everything in ((64, False), (515, True)):
        found: dict[int, list[bool]] = {}
        for example in examples:
            seen = task.tokenizer.decode(example.token_L[-window:]).split()
            guess = seen[seen.index("K") + 2] if seen.index("K") + 2 < len(seen) else "v0"
            right = task.tokenizer.ids.get(guess) == example.label_L[-1]
            found.setdefault(example.slices["distance"], []).append(right)
        rate = {distance: np.mean(right) for distance, right in found.items()}
        assert set(rate) == set(task.config.distances)
        assert all(rate[d] == 1 for d in rate if d + 2 <= window or everything)
        assert all(rate[d] < 0.25 for d in rate if d > window and not everything)  # chance is 1/16


def test_mqar_distances_and_places_are_those_of_the_tokens():
    task = make("mqar", {"pairs": 8, "length": 64})
    for index in range(EXAMPLES):
        example = task.draw(0, "train", index)
        token, places = example.token_L.tolist(), asked(example)
        assert len(places) == 8
        assert all((place - 16) % 2 == 0 and place >= 16 for place in places)
        assert len(set(token[:16:2])) == len(set(token[1:16:2])) == 8
        assert all(1 <= key < 4096 <= value < 8192 for key, value in zip(token[:16:2], token[1:16:2], strict=True))
        written = [token.index(token[place]) + 1 for place in places]
        octaves = [2 ** int(math.log2(place - at)) for place, at in zip(places, written, strict=True)]
        assert example.slices["distance"].tolist() == octaves


@pytest.mark.parametrize(("filler", "spurious"), [("zoology", True), ("safe", False)])
def test_the_safe_filler_never_repeats_a_key_and_the_reference_s_does(filler, spurious):
    task = make("mqar", {"filler": filler, "vocabulary": 32})
    found = False
    for index in range(EXAMPLES):
        example = task.draw(0, "train", index)
        rest = np.delete(example.token_L, [*range(8), *asked(example)])
        found |= bool(np.isin(rest, example.token_L[:8:2]).any())
        assert len(set(rest.tolist())) > 10
    assert found == spurious


def test_mqar_queries_come_early_as_the_power_law_says():
    task = make("mqar", {"pairs": 1, "length": 64})
    gaps = [(asked(task.draw(0, "train", index))[0] - 2) // 2 for index in range(2000)]
    p = 0.01 * np.arange(1, 32) ** -0.99
    assert np.mean(np.asarray(gaps) == 0) == pytest.approx(p[0] / p.sum(), abs=0.04)


def test_forgetting_asks_for_the_new_value_of_updated_keys_and_the_old_of_others():
    task = make("forgetting", {})
    first_is_right = {"yes": [], "no": []}
    for index in range(EXAMPLES):
        example = task.draw(0, "train", index)
        token = example.token_L.tolist()
        old = dict(zip(token[:16:2], token[1:16:2], strict=True))
        for place, updated in zip(asked(example), example.slices["updated"], strict=True):
            first_is_right[str(updated)].append(old[token[place]] == example.label_L[place])
    assert all(first_is_right["no"])
    assert not any(first_is_right["yes"])


def test_associative_uses_only_so_many_keys_as_it_is_told():
    few = make("associative", {"pairs": 3, "alphabet": 3, "vary": False})
    for index in range(5):
        key_P = few.draw(0, "train", index).token_L[:-3:4]
        assert sorted(key_P.tolist()) == [0, 1, 2]


def test_associative_scores_value_and_end_but_not_the_mark_it_cannot_foresee():
    example = make("associative", {}).draw(0, "train", 0)
    assert example.scored_A.tolist() == [False, True, True]


def test_babilong_reads_a_background_of_one_s_own(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("Too short. " + "A long sentence of a book goes on and on until it ends. " * 3)
    task = make("babilong", {"background": str(book), "length": 600})
    text = text_of(task, task.draw(0, "train", 0))
    assert "goes on and on until it ends." in text
    assert "Too short" not in text


@pytest.mark.parametrize("length", [300, 1024, 5000])
def test_texts_fill_their_length(length):
    for name in ("passkey", "babilong"):
        assert length - 150 < len(make(name, {"length": max(length, 320)}).draw(0, "train", 1).token_L) <= max(length, 320)
