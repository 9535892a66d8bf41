"""Whole runs in a bucket: they stop and continue bit for bit, in one process and in two."""

import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from memtx import cli
from memtx.config import to_json
from memtx.runs.evaluate import evaluate_run
from memtx.runs.load import load
from memtx.runs.train import train
from tests.runs import tiny, write_texts
from tests.training.test_loop import bits
from tests.training.test_processes import ROOT, finish, start_train

pytest.importorskip("gcsfs", reason="gcsfs is not installed (extra gcs)")
pytestmark = pytest.mark.thorough
RUN = "gs://bucket/runs/a"


def rows(data: bytes) -> list[dict]:
    assert data.endswith(b"\n") or not data
    return [{k: v for k, v in json.loads(line).items() if k != "train/tokens_per_s"} for line in data.splitlines()]


def watch(bucket, monkeypatch, name: str, act) -> None:
    """Check each version of the small files, and call `act` once when an object with this name is written."""
    put, todo = bucket.put, [act]

    def checked(written: str, data: bytes) -> None:
        put(written, data)
        if written.endswith("metrics.jsonl"):
            rows(data)
        elif written.startswith("runs/a/") and written.endswith(".json"):
            json.loads(data)
        if written == name and todo:
            todo.pop()()

    monkeypatch.setattr(bucket, "put", checked)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_stops_and_continues_is_that_of_a_folder_bit_for_bit(bucket, root, tmp_path_factory, monkeypatch):
    whole, said = tmp_path_factory.mktemp("whole") / "run", []
    train(tiny(root, "gru"), whole, say=lambda _: None)
    watch(bucket, monkeypatch, "runs/a/checkpoints/2/commit_success.txt", stop)
    first = train(tiny(root, "gru"), RUN, say=said.append)
    assert not first.finished
    second = train(tiny(root, "gru"), Path(RUN), say=said.append)  # pathlib drops a slash
    assert second.finished
    assert f"resumed at step {first.step} of 6 from {RUN}" in said
    assert bits(RUN) == bits(whole)
    assert rows(bucket.objects["runs/a/metrics.jsonl"]) == rows((whole / "metrics.jsonl").read_bytes())
    for name in ("config.json", "tokenizer.json"):
        assert json.loads(bucket.objects[f"runs/a/{name}"]) == json.loads((whole / name).read_bytes())
    boards = [name for name in bucket.objects if name.startswith("runs/a/tensorboard/")]
    assert len(boards) == 2
    assert load(RUN).step == 6
    assert evaluate_run(RUN)[0].metrics() == evaluate_run(whole)[0].metrics()
    assert "tensorflow" not in sys.modules


def test_a_run_that_was_killed_has_the_metrics_of_its_checkpoint(bucket, root, tmp_path, monkeypatch):
    """A process is killed while it writes the first object of a step. The next continues from the step before."""
    started = []
    watch(bucket, monkeypatch, "runs/a/checkpoints/4/params/_METADATA", lambda: started[0].kill())
    program = root / "killed.py"
    started += start_train(tiny(root, "gru"), RUN, count=1, devices=1, program=program)
    started[0].communicate(timeout=200)
    assert started[0].returncode == -signal.SIGKILL
    assert [row["step"] for row in rows(bucket.objects["runs/a/metrics.jsonl"]) if "train/loss" in row][:2] == [1, 2]
    (out,) = finish(start_train(tiny(root, "gru"), RUN, count=1, devices=1, program=program))
    assert "resumed at step 2 of 6" in out
    assert f"metrics  {RUN}/metrics.jsonl\nplot     {RUN}/loss_by_position.png" in out
    assert [row["step"] for row in rows(bucket.objects["runs/a/metrics.jsonl"]) if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert bucket.objects["runs/a/loss_by_position.png"].startswith(b"\x89PNG")
    for left in (tmp_path / "tmp").glob("memtx-run-*"):  # of the killed process
        for path in sorted(left.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        left.rmdir()


def test_the_command_of_the_page_on_clusters(bucket, root, capsys):
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    (given,) = re.findall(r'(memtx train --.*gs://.*?)"?$', page, re.MULTILINE)
    write_texts(root / "texts")
    given = given.replace("size=base,data=books", f"size=micro,data=textdir:{root / 'texts'}")
    given = given.replace("gs://my-bucket/runs/xl", RUN)
    cli.main([*shlex.split(given)[1:], "--config.train.steps=2", "--config.eval.segments=2", f"--cache={root / 'cache'}"])
    assert f"metrics  {RUN}/metrics.jsonl" in capsys.readouterr().out
    assert "runs/a/checkpoints/2/commit_success.txt" in bucket.objects


def test_two_processes_stop_and_continue(bucket, root, capsys):
    """They stop together at a signal to one of them. The run can be evaluated and read by one process."""
    program = root / "two.py"

    def config(steps):
        return tiny(root, "xl", train={"batch": 4, "steps": steps}, eval={"batch": 4}, optim={"schedule": "constant"})

    started = start_train(config(10_000), RUN, count=2, devices=1, program=program)
    while "runs/a/checkpoints/4/commit_success.txt" not in bucket.objects:
        assert all(process.poll() is None for process in started), started[0].communicate()
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    first, second = finish(started)
    step = int(re.search(r"stopped and saved at step (\d+)", first)[1])
    assert second == ""
    out, other = finish(start_train(config(step + 2), RUN, count=2, devices=1, program=program))
    assert f"resumed at step {step} of {step + 2} from {RUN}" in out
    assert other == ""
    steps = [row["step"] for row in rows(bucket.objects["runs/a/metrics.jsonl"]) if "train/loss" in row]
    assert steps == list(range(1, step + 3))
    cli.main(["eval", f"--workdir={RUN}", "--split=test", "--segments=2"])
    assert f"plot  {RUN}/loss_by_position_test.png" in capsys.readouterr().out
    cli.main(["generate", f"--workdir={RUN}", "--prompt=The", "--max_tokens=3"])
    assert capsys.readouterr().out.startswith("The")
    assert to_json(load(RUN).config)["train"]["steps"] == step + 2


def test_mistakes_are_one_line_on_the_command_line(bucket, root, capsys):
    for address, says in [
        ("gs://nowhere/a", "memtx: the bucket gs://nowhere does not exist"),
        (RUN, f"memtx: {RUN} is not the workdir of a run (it has no config.json); train one with memtx train"),
        ("s3://bucket/a", "memtx: s3://bucket/a is not an address that memtx knows: give a folder or gs://BUCKET/FOLDER"),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["eval", f"--workdir={address}"])
        assert ended.value.code == 2
        assert capsys.readouterr().err.splitlines() == [says]
