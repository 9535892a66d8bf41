"""An encoder-decoder learns targets from sources by the same loop: tiny T5s on texts to be written backwards."""

import csv
import json

import jax
import numpy as np
import pytest

import memtx
from memtx import cli
from memtx.errors import UserError
from memtx.runs.configure import build
from memtx.runs.evaluate import evaluate_run
from memtx.runs.source import make_source
from memtx.runs.train import train
from memtx.tasks.labelled import Labelled
from memtx.tasks.pairs import Pairs
from memtx.training.step import make_loss
from tests import runs
from tests.training.test_loop import bits, lines, run_until_next_line

QUIET = {"say": lambda *_: None}


def reversals(count: int, least: int, most: int) -> list[dict]:
    rng = np.random.default_rng(0)
    texts = {"".join(rng.choice(list("abcd"), rng.integers(least, most + 1))) for _ in range(count)}
    return [{"source": text, "target": text[::-1]} for text in sorted(texts)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, reversals(600, 2, 5))))
    return path


def config(file, **groups):
    values = {
        "model": {
            "stacks": ((("full/cross/mlp",), 1),),
            "encoder": ((("bidirectional",), 1),),
            "position": "t5",
            "width": 32,
            "num_heads": 4,
            "ff_dim": 64,
        },
        "memory": {"full": {"capacity": 8}, "cross": {"capacity": 8}},
        "data": {"corpus": "task:pairs", "task": {"path": str(file)}, "segment": 6},
        "optim": {"lr": 5e-3, "warmup": 2, "weight_decay": 0.0},
        "train": {"steps": 4, "batch": 16, "segments": 1, "log_every": 1},
        "eval": {"every": 2, "batch": 4, "examples": 6, "generate": 4},
        "checkpoint": {"every": 1},
    }
    for group, changes in groups.items():
        values[group] = {**values[group], **changes}
    return memtx.get_config(**values)


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """A short run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, train(config(file), workdir, **QUIET)


# --- the loop -----------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_tiny_t5_learns_to_write_backwards(file, tmp_path):
    changes = {
        "train": {"steps": 300, "batch": 32, "log_every": 50},
        "eval": {"every": 0, "batch": 16, "examples": 16, "generate": 16},
        "checkpoint": {"every": 300},
    }
    found = train(config(file, **changes), tmp_path / "run", **QUIET).evaluation
    assert found.text["exact_match"] >= 50  # chance is below 2
    assert found.carried.exact == pytest.approx(found.text["exact_match"] / 100)  # labels all right: so greedy text is
    assert found.text["bits_per_byte"] < 0.7
    assert found.wiped.exact <= 0.1  # control: without its source it cannot know


@pytest.mark.thorough
def test_a_run_says_how_well_it_writes(whole):
    workdir, trained = whole
    found = [row for row in lines(workdir) if "eval/loss" in row]
    assert [row["step"] for row in found] == [2, 4]
    for name in ("exact", "exact_match", "f1", "bleu", "chrf", "rouge_l", "bits_per_byte", "bits_per_byte_wiped"):
        assert f"eval/{name}" in found[-1]
    assert found[-1]["eval/loss"] != found[-1]["eval/loss_wiped"]
    result = trained.evaluation
    size = result.labels - result.examples  # a byte a label, none for the end
    assert found[-1]["eval/bits_per_byte"] == pytest.approx(result.carried.loss * result.labels / np.log(2) / size)


@pytest.mark.thorough
def test_a_run_told_to_stop_goes_on_bit_identically(whole, file, tmp_path):
    workdir, _ = whole
    assert run_until_next_line(config(file), tmp_path / "run").step < 4
    assert train(config(file), tmp_path / "run", **QUIET).finished
    assert lines(tmp_path / "run") == lines(workdir)
    assert bits(tmp_path / "run") == bits(workdir)


def test_a_bpe_is_trained_on_the_lines_of_train(tmp_path):
    for split, word in (("train", "banana"), ("valid", "cherry"), ("test", "cherry")):
        lines = [json.dumps({"source": f"{word} {i}", "target": word * 2}) for i in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    settings = Pairs.Config(path=str(tmp_path), tokenizer="bpe:300", cache=str(tmp_path / "cache"))
    task, again = Pairs(settings), Pairs(settings)
    tokenizer = task.tokenizer
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode("banana")) == 1  # frequent in train
    assert len(tokenizer.encode("cherry")) > 1  # control: held-out lines were not read
    assert tokenizer.fingerprint == again.tokenizer.fingerprint
    for split, examples in task.examples.items():
        assert all(tokenizer.decode(example.label_L) == example.answer for example in examples), split
    with pytest.raises(UserError, match="give a vocabulary of 264 or more"):
        Pairs(Pairs.Config(path=str(tmp_path), tokenizer="bpe:9", cache=str(tmp_path / "cache")))


@pytest.mark.thorough
def test_the_command_line_shows_evaluates_and_writes(whole, file, capsys):
    (workdir, trained), loaded = whole, memtx.load(whole[0])
    cli.main(["eval", f"--workdir={workdir}", "--examples=4", "--format=json"])
    assert "eval/rouge_l" in json.loads(capsys.readouterr().out)
    cli.main(["eval", f"--workdir={workdir}"])
    assert "no source" in capsys.readouterr().out
    cli.main(["generate", f"--workdir={workdir}", "--source=abc", "--max_tokens=3", "--temperature=0"])
    [text] = memtx.complete(
        loaded.lm, loaded.params, loaded.tokenizer, [""], source=["abc"], sampling=memtx.GREEDY, max_tokens=3
    ).texts
    assert capsys.readouterr().out == text + "\n"
    again, step = evaluate_run(workdir)
    assert step == 4
    assert again.metrics() == pytest.approx(runs.without_drift(trained.evaluation.metrics()), rel=1e-5)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", f"--workdir={workdir}", "--source=abcdefghij"])
    assert "memory.cross.capacity=8 is too small for a source of 11 tokens" in capsys.readouterr().err


# --- targets of the decoder ----------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_targets_tokens_given_their_sources(file):
    c = memtx.configure(config(file, train={"batch": 4}))
    data = make_source(c)
    lm = build(c.model, vocab_size=data.tokenizer.vocab_size)
    params, batch = lm.init(jax.random.key(0)), next(data.stream())
    asked = np.float32(batch.labelled_BPT.sum())
    loss = jax.jit(make_loss(lm, c))
    total = float(loss(params, lm.init_state(4), batch, asked, None)[0])
    token_BS, length_B = batch.shared["source/token"][:, 0], batch.shared["source/length"][:, 0]
    texts = [data.tokenizer.decode(row[:length]) for row, length in zip(token_BS, length_B, strict=True)]
    ids = [np.append(data.tokenizer.encode(text[::-1]), data.tokenizer.eos) for text in texts]
    token_BT = np.zeros((4, 6), int)
    for row, target in zip(token_BT, ids, strict=True):
        row[: len(target)] = np.append(data.tokenizer.start, target[:-1])
    state = jax.jit(lm.encode)(params, token_BS, lm.init_state(4), length_B)
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(lm.__call__)(params, token_BT, state)[0]))
    nll = [-log_p[row, place, id] for row, target in enumerate(ids) for place, id in enumerate(target)]
    assert len(set(texts)) > 1
    assert len(nll) == asked
    assert total == pytest.approx(np.mean(nll), rel=1e-5)


@pytest.mark.thorough
def test_an_encoder_reads_a_source_once_however_many_calls_its_target_takes(file):
    """Two calls of 3 tokens, the second without a source, give the same as one of 6."""
    one, two = (
        memtx.configure(config(file, data={"segment": time}, train={"segments": calls, "batch": 4}))
        for calls, time in ((1, 6), (2, 3))
    )
    found = []
    for c in (one, two):
        data = make_source(c)
        lm, batch = build(c.model, vocab_size=data.tokenizer.vocab_size), next(data.stream())
        args = lm.init(jax.random.key(0)), lm.init_state(4), batch, np.float32(batch.labelled_BPT.sum()), None
        found.append((batch, *jax.jit(jax.value_and_grad(lambda *args, lm=lm, c=c: make_loss(lm, c)(*args)[0]))(*args)))
    (_, loss, gradient), (batch, cut, same) = found
    assert (batch.shared["source/length"][:, 1] == 0).all()
    assert (batch.length_BP[:, 1] > 0).any()
    assert float(cut) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, same)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient["encoder"])) > 1e-3


@pytest.mark.parametrize("around", ["", pytest.param("rmt_encoder", marks=pytest.mark.thorough)])
def test_memory_tokens_carry_a_long_source_through_an_encoder(file, around):
    """Segment by segment, the start of a source reaches the encoding of its end, but not the other way round."""
    memory = {"full": {"capacity": 8}, "cross": {"capacity": 9}, "rmt_encoder": {"segment": 3, "memory": 2}}
    lm = build(memtx.configure(config(file, model={"encoder_body": around}, memory=memory)), vocab_size=264)
    params, encode = lm.init(jax.random.key(0)), jax.jit(lm.encode)

    def moved(changed: int, seen: int) -> float:
        """Return how much the keys of cross-attention at one position depend on the token at another."""
        tokens = [np.where(np.arange(9) == changed, token, 7)[None] for token in (100, 200)]
        first, second = (encode(params, token, lm.init_state(1)).body[0][0][1][0].k_BSKH for token in tokens)
        return float(np.abs(first - second)[0, 0, seen].max())

    assert moved(0, 8) > 1e-4
    assert (moved(8, 0) > 1e-4) == (not around)  # the control: it is read in segments


# --- files --------------------------------------------------------------------------------------------------------------------


def test_one_file_is_split_by_source_and_each_example_is_on_one_side(tmp_path):
    rows = [{"source": f"s{i % 40}", "target": f"t{i}"} for i in range(80)]  # each source twice
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    task = Pairs(Pairs.Config(path=str(path)))
    answers = {split: {example.answer for example in found} for split, found in task.examples.items()}
    assert {split: len(found) for split, found in answers.items()} == {"train": 72, "valid": 4, "test": 4}
    assert set.union(*answers.values()) == {row["target"] for row in rows}
    sides = [{int(answer[1:]) % 40 for answer in found} for found in answers.values()]
    assert sum(map(len, sides)) == 40


@pytest.mark.parametrize("form", ["csv", "tsv", "folder"])
def test_other_forms_hold_the_same_examples(tmp_path, form):
    rows = [{"source": f'say "{i}",\tplease', "target": f"line\n{i}"} for i in range(9)]
    plain, other = tmp_path / "pairs.jsonl", tmp_path / f"pairs.{form}"
    plain.write_text("\n".join(map(json.dumps, rows)))
    if form == "folder":
        other.mkdir()
        for i, split in enumerate(("train", "valid", "test")):
            (other / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows[3 * i : 3 * i + 3])))
    else:
        with other.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["target", "source"], delimiter="," if form == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    found = [
        {
            (example.answer, example.source_S.tobytes())
            for examples in Pairs(Pairs.Config(path=str(path))).examples.values()
            for example in examples
        }
        for path in (plain, other)
    ]
    assert len(found[0]) == 9
    assert found[0] == found[1]


def test_what_is_cut_is_cut_by_a_setting_and_keeps_its_end(file):
    task = Pairs(Pairs.Config(path=str(file), source_tokens=3, target_tokens=2))
    assert (task.source, task.length) == (3, 2)
    whole = Pairs(Pairs.Config(path=str(file)))
    assert (whole.source, whole.length) == (6, 6)
    assert {example.label_L[-1] for found in (*task.examples.values(), *whole.examples.values()) for example in found} == {256}
    assert task.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*pairs.jsonl: No such file"),
        ("", "has no examples"),
        ('{"source": "a", "target": "b"}\n\n{"source": "a"', "line 3: not JSON; each line must be"),
        ('{"source": "a"}', 'line 1: no text at "target"'),
        ('{"source": "a", "target": ""}', 'line 1: no text at "target"'),
        ('["a", "b"]', 'line 1: no text at "source"'),
        ('{"source": "a", "target": "b"}', "too small to split"),
    ],
)
def test_files_that_cannot_be_read_are_user_errors(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        train(config(path), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"encoder": (), "stacks": ((("full",), 1),)}}, "has no encoder"),
        (
            {"memory": {"full": {"capacity": 8}, "cross": {"capacity": 4}}},
            r"a source of 6 tokens; increase it .*or cut",
        ),
        ({"data": {"segment": 4}}, r"a target has 6 tokens.*set data\.segment=6, or cut targets"),
        ({"data": {"task": {"path": ""}}}, r"data\.task\.path is not set"),
        ({"eval": {"examples": 500}}, r"valid has 16 examples: set eval\.examples=16"),
        ({"model": {"encoder_body": "rmt"}}, r"set model\.encoder_body=rmt_encoder"),
    ],
)
def test_settings_that_cannot_be_are_user_errors(file, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config(file, **changes), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_labels_of_a_table_are_split_and_learned_the_same_way(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    task = Labelled(Labelled.Config(path=str(path)))
    assert task.names == ["a", "b"]
    assert [len(task.examples[split]) for split in ("train", "valid", "test")] == [36, 2, 2]


@pytest.mark.parametrize("memory", ["none", "rmt_encoder"])
def test_the_config_file_makes_a_new_model_that_fits_its_file(file, memory):
    sizes = f"size=micro,source=8,target=6,memory={memory},segment=4"
    c = memtx.configure(memtx.load_config(f"configs/seq2seq.py:path={file},{sizes}"))
    data = make_source(c)
    lm = build(c.model, vocab_size=data.tokenizer.vocab_size)
    data.check(lm)
    assert ("initial" in lm.abstract_params["encoder"]["body"]) == (memory == "rmt_encoder")
    with pytest.raises(UserError, match="source, target and segment must be numbers above 0, not x, 6"):
        memtx.load_config(f"configs/seq2seq.py:path={file},source=x,target=6")
