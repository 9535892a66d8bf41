"""A model of classes learns from labelled documents by the same loop; memory tokens carry what an earlier call said."""

import json

import numpy as np
import pytest

import memtx
from memtx.data.tasks.labelled import Labelled
from memtx.evaluation.recall import Recall
from memtx.models.lm import build

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
        train={"steps": 60, "batch": 8, "segments": 3},
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
    with pytest.raises(memtx.UserError, match=r"the labels are 2 classes: set model\.output=classes"):
        memtx.train(config(folder, output=""), tmp_path / "run")
    with pytest.raises(memtx.UserError, match=r"model\.output=classes gives no next tokens"):
        build(memtx.configure(config(folder)), vocab_size=264).check_learns(0)
    with pytest.raises(memtx.UserError, match="cannot read"):
        Labelled(Labelled.Config(path=str(tmp_path / "none")))
    with pytest.raises(memtx.UserError, match="every must be at least 0, not -1"):
        Labelled.Config(every=-1)
    assert not (tmp_path / "run").exists()
