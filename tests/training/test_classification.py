"""A model of classes learns from labelled documents by the same loop; memory tokens carry information from earlier calls."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import memtx
from memtx.data import tokenizers
from memtx.evaluation.recall import Recall
from memtx.models.settings import complete_model
from memtx.pretrained import bert, labels
from memtx.runs.configure import build
from memtx.runs.evaluate import evaluate_config, evaluate_run
from memtx.tasks.labelled import Labelled, class_names

VOCABULARY = Path(__file__).parents[1] / "golden" / "hf" / "vocabularies" / "wordpiece"

SIZES = {"width": 16, "num_heads": 2, "ff_dim": 32, "post_norm": True, "norm": "layer", "position": "learned", "tied": True}


@pytest.fixture
def folder(tmp_path):
    """The first letter says the class; the document is longer than a call."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("valid", 16), ("test", 3)):
        lines = []
        for i in range(count):
            tail = "".join(rng.choice(list("cdef"), 8 + i % 3))
            lines.append(json.dumps({"text": "ab"[i % 2] * 2 + tail, "label": ["first", "second"][i % 2]}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def config(folder, **changes):
    model = {"stacks": ((("bidirectional",), 1),), "body": "rmt_encoder", "output": "classes", "pool": "mean", "classes": 2}
    return memtx.get_config(
        model=SIZES | model | changes,
        memory={"rmt_encoder": {"segment": 4, "memory": 2}},
        data={"corpus": "task:labelled", "task": {"path": str(folder)}, "segment": 4},
        train={"steps": 240, "batch": 8, "segments": 3},
        eval={"every": 0, "batch": 8, "examples": 16},
        optim={"lr": 1e-2, "warmup": 5, "weight_decay": 0.0},
    )


@pytest.mark.thorough
def test_memory_carries_the_class_to_the_end_of_a_document(folder, tmp_path):
    done = memtx.train(config(folder), tmp_path / "run", say=lambda *_: None)
    assert isinstance(done.evaluation, Recall)
    assert done.evaluation.carried.accuracy == 1
    assert done.evaluation.wiped.accuracy < 0.9  # control: the last call alone does not know it
    loaded = memtx.load(tmp_path / "run")
    assert loaded.config.model.output == "classes"


def test_labels_stand_at_the_last_token_and_each_pass_has_each_document(folder):
    task = Labelled(Labelled.Config(path=str(folder), tokens=6))
    assert task.classes == 2
    assert task.names == ["first", "second"]
    example = task.draw(0, "valid", 1)
    assert example.label_L.tolist() == [-1, -1, -1, -1, -1, 1]
    passes = [[task.draw(0, "train", 32 * epoch + i).token_L.tobytes() for i in range(32)] for epoch in range(2)]
    whole = [task.draw(0, "train", i).token_L.tobytes() for i in range(32)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] == whole
    assert passes[0] != passes[1]
    with pytest.raises(memtx.UserError, match=r"valid has 16 examples: set eval\.examples=16"):
        task.draw(0, "valid", 16)


def test_training_takes_pieces_from_anywhere_and_asks_on_the_way(folder):
    task = Labelled(Labelled.Config(path=str(folder), tokens=6, anywhere=True, every=2))
    whole = Labelled(Labelled.Config(path=str(folder)))
    assert task.length == 6
    starts = set()
    for epoch in range(50):
        piece, document = task.draw(0, "train", 32 * epoch), whole.draw(0, "train", 32 * epoch)
        label = task.names.index(piece.slices["class"])
        assert piece.label_L.tolist() == [-1, label] * 3
        found = [i for i in range(9) if document.token_L[i : i + 6].tolist() == piece.token_L.tolist()]
        assert found
        starts.add(found[0])
    assert len(starts) > 4
    held_out = task.draw(0, "valid", 1)  # its beginning, and asked at its end
    assert held_out.label_L.tolist() == [-1, -1, -1, -1, -1, 1]
    assert held_out.token_L[:5].tolist() == whole.draw(0, "valid", 1).token_L[:5].tolist()


def test_what_cannot_be_learned_is_refused(folder, tmp_path):
    with pytest.raises(memtx.UserError, match=r"the labels have 2 classes; set model\.output=classes"):
        memtx.train(config(folder, output=""), tmp_path / "run")
    with pytest.raises(memtx.UserError, match=r"model\.output=classes does not predict next tokens"):
        build(memtx.configure(config(folder)), vocab_size=264).check_learns(0)
    with pytest.raises(memtx.UserError, match="cannot read"):
        Labelled(Labelled.Config(path=str(tmp_path / "none")))
    with pytest.raises(memtx.UserError, match="every must be at least 0, not -1"):
        Labelled.Config(every=-1)
    assert not (tmp_path / "run").exists()


# --- which class a label is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "known", "names"),
    [
        (["b", "a"], (), ["a", "b"]),
        (["10", "2", "1"], (), ["1", "2", "10"]),
        (["-1", "1.5", "1", "none"], (), ["-1", "1", "1.5", "none"]),
        (["LABEL_10", "LABEL_2"], (), ["LABEL_2", "LABEL_10"]),
        (["a", "c"], ("c", "b", "a"), ["c", "b", "a"]),
        (["LABEL_2", "LABEL_0"], ("LABEL_0", "LABEL_1", "LABEL_2"), ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["0", "2"], ("LABEL_0", "LABEL_1", "LABEL_2"), ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["3", "1", "2"], ("LABEL_0", "LABEL_1", "LABEL_2"), ["1", "2", "3"]),
        (["b", "a"], ("LABEL_0", "LABEL_1", "LABEL_2"), ["a", "b", "LABEL_2"]),
    ],
)
def test_a_models_names_come_before_the_order_of_the_data(found, known, names):
    assert list(class_names(found, known)) == names


@pytest.mark.parametrize(
    ("found", "known"),
    [
        (["a", "other"], ("a", "b")),
        (["1", "3"], ("LABEL_0", "LABEL_1", "LABEL_2")),
        (["LABEL_0", "LABEL_5"], ("LABEL_0", "LABEL_1")),
        ([f"other {i}" for i in range(1000)], tuple(f"class {i}" for i in range(1000))),
    ],
)
def test_labels_that_a_model_does_not_know_are_listed_beside_those_that_it_does(found, known):
    with pytest.raises(memtx.UserError, match="labels that the model does not know: .*; its labels are ") as error:
        class_names(found, known)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"0": "positive", "1": "negative"}}, ("positive", "negative")),
        ({"label2id": {"negative": 1, "positive": "0"}}, ("positive", "negative")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"b": 0, "a": 1}}, ("b", "a")),
        ({"id2label": {"0": "b", "1": "a"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ("b", "a")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": None}, ("LABEL_0", "LABEL_1")),
        ({"id2label": {str(i): f"c{i}" for i in (10, *range(10))}}, tuple(f"c{i}" for i in range(11))),
    ],
)
def test_the_names_of_classes_are_those_of_config_json(config, names):
    assert labels.read(config) == names
    assert labels.read(labels.write(names, len(names))) == names


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": "a"}},
        {"id2label": {"x": "a", "1": "b"}},
        {"id2label": {"0": "a", "1.0": "b"}},
        {"id2label": ["a", "b"]},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
        {"num_labels": "3"},
        {"num_labels": 0},
        {"num_labels": 10**12},
    ],
)
def test_names_of_classes_that_are_none_are_one_line(config):
    with pytest.raises(memtx.UserError) as error:
        labels.read(config)
    assert "\n" not in str(error.value)


@pytest.fixture
def classifier(tmp_path):
    """A tiny BERT of three classes in a folder, and texts with the class that it gives each."""
    tokenizer = tokenizers.pretrained(VOCABULARY)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    settings = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 32, "type_vocab_size": 2, **sizes}
    names = {"id2label": {"0": "zeta", "1": "mid", "2": "alpha"}, "architectures": ["BertForSequenceClassification"]}
    lm = build(complete_model(bert.model(settings | names, 64)))
    params = lm.init(jax.random.key(0))
    params["output"]["classes"]["w"] *= 50
    memtx.export(lm, params, tmp_path / "model", tokenizer=tokenizer)
    texts = ["The keeper counted ships.", "He wrote.", "ships ships", "the year after", "they came", "counted", "1984"]
    ids = [tokenizer.frame(text)[0] for text in texts]
    longest = max(map(len, ids))
    padded = np.stack([np.pad(row, (0, longest - len(row))) for row in ids])
    seg = memtx.segment(np.broadcast_to(np.arange(longest), padded.shape), [len(row) for row in ids])
    classes = jax.jit(lm.__call__)(params, padded, lm.init_state(len(ids)), seg)[0].argmax(-1)
    return tmp_path / "model", texts, classes.tolist()


def write_labels(folder, texts, said):
    folder.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        rows = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, said, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))


@pytest.mark.thorough
def test_the_names_of_a_classifier_decide_in_evaluation_training_and_export(classifier, tmp_path):
    folder, texts, given = classifier
    names, data = ("zeta", "mid", "alpha"), tmp_path / "data"
    assert len(set(given)) > 1
    write_labels(data, texts, [names[number] for number in given])
    config = memtx.load_config(f"configs/classify.py:path={data},backbone={folder},memory=none,segment=32")
    config.update({"eval": {"examples": len(texts), "every": 0}, "train": {"steps": 1}, "optim": {"lr": 0.0}})
    assert evaluate_config(config).carried.accuracy == 1  # by sorted text it would be another
    run = tmp_path / "run"
    assert memtx.train(config, run, say=lambda *_: None).evaluation.carried.accuracy == 1
    write_labels(data, texts[:1], [names[given[0]]])  # fewer labels than it was trained with
    result, _ = evaluate_run(run, examples=1)
    assert result.carried.by_slice == {f"class={names[given[0]]}": 1}
    loaded = memtx.load(run)
    memtx.export(loaded.lm, loaded.params, tmp_path / "out", tokenizer=loaded.tokenizer)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["id2label"] == {"0": "zeta", "1": "mid", "2": "alpha"}
    assert memtx.load(tmp_path / "out").lm.model.labels == names
    write_labels(data, texts, ["other"] * len(texts))
    with pytest.raises(memtx.UserError, match="does not know: 'other'; its labels are 'zeta', 'mid', 'alpha'"):
        evaluate_run(run)


@pytest.mark.thorough
def test_a_run_remembers_the_labels_of_its_data(folder, tmp_path):
    c = config(folder, classes=3)
    c.train.steps = 1
    memtx.train(c, tmp_path / "run", say=lambda *_: None)
    assert memtx.load(tmp_path / "run").lm.model.labels == ("first", "second", "LABEL_2")
    again = memtx.train(memtx.load(tmp_path / "run").config, tmp_path / "run", say=lambda *_: None)  # it is the same run
    assert again.finished
    (folder / "train.jsonl").write_text(json.dumps({"text": "aa", "label": "another"}))
    with pytest.raises(memtx.UserError, match="belongs to a run with a different config .*model.labels"):
        memtx.train(c, tmp_path / "run", say=lambda *_: None)
