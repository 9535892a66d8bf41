"""Turns: only targets have labels, the order is kept, turns see the turns before them, and a model continues as in training."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import memtx
from memtx.data.streams import NOTHING
from memtx.runs.configure import build
from memtx.runs.source import make_source
from memtx.tasks.turns import Turns

LINES = [("a", "one", "uno"), ("a", "two", "dos"), ("a", "three", "tres"), ("b", "four", "cuatro"), ("a", "five", "cinco")]
BOS = 256  # of bytes, which also ends a text


@pytest.fixture
def folder(tmp_path):
    lines = "\n".join(json.dumps(dict(zip(Turns.keys, line, strict=True))) for line in LINES)
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text(lines)
    return tmp_path


def task(folder, **settings) -> Turns:
    return Turns(Turns.Config(path=str(folder), **settings))


def read(task: Turns, example) -> str:
    """Return the text of an example, with | for the token that starts and ends texts."""
    return "".join("|" if id == BOS else chr(id) for id in [*example.token_L, example.label_L[-1]])


def test_a_document_is_its_turns_in_order(folder):
    found = task(folder)
    assert [read(found, example) for example in found.examples["train"]] == [
        "|one\nuno|two\ndos|three\ntres|",
        "|four\ncuatro|",
        "|five\ncinco|",  # lines that are not consecutive
    ]


def test_labels_are_the_targets_and_their_ends_and_nothing_else(folder):
    found = task(folder)
    example = found.examples["valid"][0]
    labelled_L = example.label_L != NOTHING
    assert "".join("|" if id == BOS else chr(id) for id in example.label_L[labelled_L]) == "uno|dos|tres|"
    following_L = np.append(example.token_L[1:], BOS)
    assert (example.label_L[labelled_L] == following_L[labelled_L]).all()
    # Control: no label is at a token that comes before another token of a source.
    text = read(found, example)
    sources = [text.index(word) + i for word in ("one\n", "two\n", "three\n") for i in range(len(word))]
    assert not labelled_L[np.asarray(sources) - 1].any()
    assert labelled_L.sum() + len(sources) == len(text) - 1


def test_slices_are_the_numbers_of_turns(folder):
    turn_A = task(folder).examples["train"][0].slices["turn"]
    assert turn_A.tolist() == [1] * 4 + [2] * 4 + [2] * 5  # octaves


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"turns": 2}, ["|one\nuno|two\ndos|", "|three\ntres|", "|four\ncuatro|", "|five\ncinco|"]),
        ({"tokens": 16}, ["|one\nuno|two\ndos|", "|three\ntres|", "|four\ncuatro|", "|five\ncinco|"]),
        ({"tokens": 15}, ["|one\nuno|", "|two\ndos|", "|three\ntres|", "|four\ncuatro|", "|five\ncinco|"]),
        ({"tokens": 2, "turns": 9}, ["|one\nuno|", "|two\ndos|", "|three\ntres|", "|four\ncuatro|", "|five\ncinco|"]),
        ({"before": "Q:", "between": "A:"}, ["|Q:oneA:uno|Q:twoA:dos|Q:threeA:tres|", "|Q:fourA:cuatro|", "|Q:fiveA:cinco|"]),
    ],
)
def test_documents_are_cut_between_turns_and_prompts_have_their_markup(folder, settings, parts):
    found = task(folder, **settings)
    assert [read(found, example) for example in found.examples["test"]] == parts
    assert found.length == max(map(len, parts)) - 1
    assert found.fingerprint != task(folder).fingerprint


def test_markup_of_special_tokens_is_read_as_such_and_texts_are_framed_as_by_complete(folder):
    vocabulary = f"pretrained:{Path(__file__).parents[2] / 'golden/hf/vocabularies/byte_bpe'}"
    plain, marked = (
        task(folder, tokenizer=vocabulary, between="<|endoftext|>", specials=specials) for specials in (False, True)
    )
    end = marked.tokenizer.specials["<|endoftext|>"]
    first = marked.examples["train"][0].token_L.tolist()
    assert first[: first.index(end) + 1] == [*marked.tokenizer.encode("one"), end]
    spelled = plain.examples["train"][0].token_L
    assert spelled[: len(plain.tokenizer.frame("one<|endoftext|>")[0])].tolist() == [
        *plain.tokenizer.frame("one<|endoftext|>")[0]
    ]
    assert (spelled == end).sum() < (np.asarray(first) == end).sum()  # control


def test_one_file_is_split_by_document_and_a_bpe_does_not_read_the_names(tmp_path):
    lines = [{"document": f"name {i // 4}", "source": f"banana {i}", "target": f"t{i}"} for i in range(120)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = task(tmp_path / "a.jsonl", tokenizer="bpe:280", cache=str(tmp_path / "cache"))
    assert {split: len(examples) for split, examples in found.examples.items()} == {"train": 28, "valid": 1, "test": 1}
    assert all(example.slices["turn"][-1] == 4 for examples in found.examples.values() for example in examples)
    assert len(found.tokenizer.encode("name")) == 4
    assert len(found.tokenizer.encode("banana")) == 1  # control


def config(folder, **groups):
    values = {
        "model": {"stacks": ((("xl",), 1),), "width": 16, "num_heads": 2, "ff_dim": 32},
        "memory": {"xl": {"memory": 32}},
        "data": {"corpus": "task:turns", "task": {"path": str(folder)}, "segment": 8},
        "train": {"steps": 60, "batch": 4, "segments": 4},
        "optim": {"lr": 1e-2, "warmup": 5},
        "eval": {"every": 0, "batch": 3, "examples": 3, "sample_tokens": 0},
        "checkpoint": {"every": 60},
    }
    return memtx.get_config(**{**values, **groups})


@pytest.mark.thorough
def test_a_turn_sees_the_turns_before_it(folder):
    """The loss at a later turn depends on the first source. Another document does not depend on it."""
    c = memtx.configure(config(folder))
    data = make_source(c)
    lm = build(c.model, vocab_size=data.tokenizer.vocab_size)
    params, batch = lm.init(jax.random.key(0)), next(data.stream())
    row = int(np.flatnonzero(batch.token_BPT[:, 0, 1] == ord("o"))[0])  # |one ...
    other = int(np.flatnonzero(batch.token_BPT[:, 0, 1] != ord("o"))[0])

    @jax.jit
    def logits(token_BPT):
        state, found = lm.init_state(4), []
        for part in range(token_BPT.shape[1]):
            seg = memtx.segment(batch.position_BPT[:, part], batch.length_BP[:, part])
            logits_BTV, state = lm(params, token_BPT[:, part], state, seg)
            found.append(logits_BTV)
        return jax.numpy.concatenate(found, 1)

    changed = batch.token_BPT.copy()
    changed[row, 0, 1] = ord("x")
    moved_BT = np.abs(np.asarray(logits(batch.token_BPT) - logits(changed))).max(-1)
    last = int(batch.length_BP[row].sum()) - 1
    assert moved_BT[row, last] > 1e-5  # at the end of the third target
    assert moved_BT[other].max() == 0  # control


@pytest.mark.thorough
def test_a_trained_model_goes_on_from_turn_to_turn(folder, tmp_path):
    memtx.train(config(folder, train={"steps": 300, "batch": 4, "segments": 4}), tmp_path / "run", say=lambda *_: None)
    run, state, written = memtx.load(tmp_path / "run"), None, []
    for _, source, _ in LINES[:3]:
        done = memtx.complete(
            run.lm, run.params, run.tokenizer, [f"{source}\n"], state=state, sampling=memtx.GREEDY, max_tokens=9
        )
        written.append(done.texts[0])
        state = done.state
    assert written == ["uno", "dos", "tres"]
    tokens = task(folder).examples["train"][0].token_L
    assert state.position_B.tolist() == [len(tokens) + 1]  # it has read the example's tokens and the last end


def test_prompts_of_complete_are_the_tokens_of_training(folder, tmp_path):
    found = task(folder, tokenizer="bpe:300", cache=str(tmp_path / "cache"))
    lm = build(memtx.configure(config(folder)).model, vocab_size=300)
    first = memtx.complete(lm, lm.init(jax.random.key(0)), found.tokenizer, ["one\n"], max_tokens=1)
    ids = found.examples["train"][0].token_L
    assert ids[: len(first.prompts[0])].tolist() == first.prompts[0].tolist()
    second = memtx.complete(lm, lm.init(jax.random.key(0)), found.tokenizer, ["two\n"], state=first.state, max_tokens=1)
    at = len(first.prompts[0]) + len(found.tokenizer.encode("uno")) + 1
    assert ids[at : at + len(second.prompts[0])].tolist() == second.prompts[0].tolist()
