"""No run is overwritten by accident."""

import subprocess
import sys

import pytest

from memtx.config import Config, to_json
from memtx.errors import UserError
from memtx.training.checkpoint import Checkpointer
from memtx.training.workdir import FREE, SILENT, differences
from tests.training.runs import CONFIG, resume, same


def test_another_config_is_refused(saved):
    other = CONFIG | {"model": {"width": 256, "stacks": ()}, "extra": 1}
    with pytest.raises(UserError) as error:
        resume(saved, other)
    assert "model.width: 256 here, 128 in the checkpoint" in str(error.value)
    assert "model.stacks" in str(error.value)
    assert "extra: 1 here, absent in the checkpoint" in str(error.value)


def test_a_key_that_an_older_run_does_not_know_was_at_its_default():
    now = to_json(Config())
    older = now | {"data": {key: value for key, value in now["data"].items() if key != "mask"}}
    assert differences(now, older) == differences(older, now) == []
    hidden = now | {"data": now["data"] | {"mask": 0.15}}
    assert differences(hidden, older) == ["data.mask: 0.15 here, 0.0 in the checkpoint"]
    now, older = ({"memory": {"memorizing": settings}} for settings in ({"memory": 64, "sinks": 0}, {"memory": 64}))
    assert differences(now, older) == differences(older, now) == []
    sunk = {"memory": {"memorizing": {"memory": 64, "sinks": 4}}}
    assert differences(sunk, older) == ["memory.memorizing.sinks: 4 here, 0 in the checkpoint"]
    larger = {"memory": {"memorizing": {"memory": 128, "sinks": 0}}}
    assert differences(larger, now) == ["memory.memorizing.memory: 128 here, 64 in the checkpoint"]  # for sweeps


def test_steps_batch_and_evaluation_may_change(saved):
    longer = CONFIG | {
        "train": {"steps": 99, "batch": 4, "accumulate": 2},
        "eval": {"every": 1},
        "mesh": {"data": 2},
        "checkpoint": {"keep": 9},
    }
    same(resume(saved, longer), 2)
    with pytest.raises(UserError, match=r"train\.segments"):
        resume(saved, CONFIG | {"train": {"steps": 10, "batch": 8, "segments": 3}})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not the workdir of a run"):
        Checkpointer(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write in .*Not a directory"):
        Checkpointer(tmp_path / "file" / "run", CONFIG)


def test_a_start_cut_off_before_the_config_was_written_is_no_obstacle(tmp_path):
    (tmp_path / "config.json.part").write_text("{")
    assert resume(tmp_path) is None


def test_two_processes_do_not_train_in_one_workdir(saved):
    hold = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); print(); input()"
    command = [sys.executable, "-c", hold, str(saved / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        other.stdout.readline()
        before = {path: path.stat().st_mtime_ns for path in saved.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match="in use: another process"):
            resume(saved)
        assert before == {path: path.stat().st_mtime_ns for path in saved.rglob("*") if path.is_file()}
        other.kill()
    same(resume(saved), 2)  # the lock ended with the process


def test_the_lock_ends_with_the_run(tmp_path):
    with Checkpointer(tmp_path / "run", CONFIG):
        pass
    command = "import sys; from filelock import FileLock; FileLock(sys.argv[1], timeout=0).acquire()"
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "run" / ".lock")], check=True)


def test_a_run_may_continue_with_a_changed_file_of_its_memory_and_says_so():
    now, before = ({"own": {"mine": f"/me/mine.py:Mine {digest}"}} for digest in "ab")
    assert not differences(now, before, FREE)
    assert differences(now, before, SILENT) == ["own.mine: /me/mine.py:Mine a here, /me/mine.py:Mine b in the checkpoint"]
