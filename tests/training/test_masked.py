"""Encoders learn from text with hidden tokens: the choice of tokens, an exact cursor, and a loop that resumes."""

import numpy as np
import pytest

import memtx
from memtx.data import tokenizers
from memtx.data.masked import Masked
from memtx.data.streams import Stream
from memtx.data.tokens import Tokens
from memtx.errors import UserError
from memtx.runs.evaluate import evaluate_run
from memtx.runs.train import train
from tests.cursors import goes_on, rows_of
from tests.runs import tiny
from tests.training.test_loop import bits, lines, run_until_next_line

BYTES = tokenizers.byte_tokenizer()


def stream(process_index: int = 0, process_count: int = 1, share: float = 0.15) -> Masked:
    rng = np.random.default_rng(0)
    ids = rng.integers(97, 101, 4000).astype(np.uint16)
    tokens = Tokens(ids, np.asarray([0, 1000, 1800, 3100, 4000]), tuple("abcd"), BYTES.bos, "four")
    rows = rows_of(4, process_index, process_count)
    return Masked(Stream(tokens, (4, 2, 50), rows=rows), BYTES, share, seed=0, rows=rows)


def test_a_share_of_the_text_is_hidden_by_the_80_10_10_rule():
    batches = [next(masked) for masked in [stream()] for _ in range(60)]
    asked, token, target = (
        np.concatenate([getattr(batch, name).ravel() for batch in batches])
        for name in ("labelled_BPT", "token_BPT", "target_BPT")
    )
    real = sum(int(batch.length_BP.sum()) for batch in batches)
    assert asked.sum() / real == pytest.approx(0.15, abs=0.01)
    hidden, right = token[asked], target[asked]
    assert set(right) == set(range(97, 101))  # never bos
    assert (hidden == BYTES.mask).mean() == pytest.approx(0.8, abs=0.03)
    assert (hidden == right).mean() == pytest.approx(0.1, abs=0.03)
    assert len(set(hidden[(hidden != BYTES.mask) & (hidden != right)])) > 60  # any token of text, not one of these four
    again = [next(masked) for masked in [stream()] for _ in range(2)]
    assert (again[0].token_BPT == batches[0].token_BPT).all()
    assert ((again[0].target_BPT >= 0) != (again[1].target_BPT >= 0)).any()


def test_a_cursor_goes_on_with_the_same_hidden_tokens_on_any_number_of_processes():
    goes_on(stream, [(1, 3), (2, 4), (4, 2), (1, 3)])
    with pytest.raises(UserError, match="hid no tokens"):
        stream().set_state({})


def test_what_cannot_be_hidden_is_a_user_error(root, tmp_path):
    for groups in ({"data": {"mask": 0.15}}, {"model": {"stacks": [[["bidirectional"], 1]], "output": "masked_lm"}}):
        with pytest.raises(UserError, match=r"model\.output=masked_lm and data\.mask"):
            train(tiny(root, **groups), tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.mask must be in"):
        tiny(root, data={"mask": 1.5})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("memory", ["none", "rmt_encoder"])
def test_the_config_file_makes_a_model_of_hidden_tokens(memory):
    config = memtx.configure(memtx.load_config(f"configs/masked.py:size=micro,memory={memory}"))
    assert config.data.mask == 0.15
    assert (config.model.output, config.model.body) == ("masked_lm", "" if memory == "none" else memory)
    with pytest.raises(UserError, match="segment must be a number above 0, not x"):
        memtx.load_config("configs/masked.py:segment=x")


@pytest.mark.thorough
def test_an_encoder_learns_what_is_hidden_and_goes_on_bit_identically(root, tmp_path):
    model = {"stacks": [[["bidirectional"], 1]], "output": "masked_lm", "width": 32}
    config = tiny(
        root, model=model, data={"mask": 0.15, "segment": 32}, train={"steps": 40}, eval={"every": 20}, checkpoint={"every": 5}
    )
    whole = train(config, tmp_path / "whole", say=lambda *_: None)
    first = next(row for row in lines(tmp_path / "whole") if "train/loss" in row)["train/loss"]
    assert whole.evaluation.carried.loss < first - 1
    assert run_until_next_line(config, tmp_path / "run").step < 40
    assert train(config, tmp_path / "run", say=lambda *_: None).finished
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    again, _ = evaluate_run(tmp_path / "run")
    assert again.metrics() == pytest.approx(whole.evaluation.metrics(), rel=1e-5)  # the same tokens are hidden
