"""The scheduler does every run once, N at a time, whatever becomes of its jobs.

Jobs here are made up; tests/sweep/test_processes.py has real ones.
"""

import json

import pytest

from memtx.config import to_json
from memtx.errors import UserError
from memtx.sweep import record as records
from memtx.sweep import schedule
from memtx.sweep.execute import folder_of
from memtx.sweep.schedule import BUSY, Scheduler, choose, claim, states
from memtx.sweep.spec import load_sweep


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(schedule, "POLL", 0.001)
    monkeypatch.setattr(schedule, "LOOK_AGAIN", 0.002)


class Jobs:
    """An executor whose jobs end after two polls. ends: by run and attempt, (exit status, record's status or None)."""

    def __init__(self, sweep, workdir, ends=None):
        self.sweep, self.workdir, self.ends = sweep, workdir, ends or {}
        self.started, self.now, self.most = [], 0, 0

    def start(self, command, log, slot):
        name = command[-1].removeprefix("--run=")
        self.started.append(name)
        self.now += 1
        self.most = max(self.most, self.now)
        log.parent.mkdir(parents=True, exist_ok=True)
        return _Job(self, name)


class _Job:
    def __init__(self, jobs, name):
        self.jobs, self.name, self.polls = jobs, name, 0
        ends = jobs.ends.get(name, [])
        attempt = jobs.started.count(name)
        self.status, self.state = ends[attempt - 1] if attempt <= len(ends) else (0, "finished")

    def poll(self):
        self.polls += 1
        if self.polls < 2:
            return None
        self.jobs.now -= 1
        if self.state:
            error = "it broke" if self.state == "failed" else ""
            config = to_json(self.jobs.sweep.runs[self.name].config)
            record = {"status": self.state, "error": error, "solved": {}, "config": config}
            records.write(folder_of(self.jobs.workdir, self.name), record)
        return self.status

    def stop(self):
        pass


@pytest.fixture
def made(sweep_file, tmp_path):
    sweep, workdir, told = load_sweep(sweep_file("product({'seed': range(5)})")), tmp_path / "w", []

    def make(ends=None, parallel=2):
        claim(sweep, workdir)
        jobs = Jobs(sweep, workdir, ends)
        scheduler = Scheduler(sweep, workdir, jobs, parallel, lambda *change: told.append(change))
        return scheduler, jobs

    make.sweep, make.workdir, make.told, make.names = sweep, workdir, told, list(sweep.runs)
    return make


def test_every_run_is_done_once_and_never_more_than_n_at_a_time(made):
    scheduler, jobs = made()
    scheduler.run(made.names)
    assert sorted(jobs.started) == sorted(made.names)
    assert jobs.most == 2
    assert scheduler.settled == dict.fromkeys(made.names, "finished")
    scheduler, jobs = made()
    scheduler.run(made.names)
    assert jobs.started == []


def test_failed_runs_are_reported_with_their_error_and_retried_only_if_asked(made):
    broken = made.names[1]
    scheduler, _ = made({broken: [(1, "failed")]})
    scheduler.run(made.names)
    assert scheduler.settled[broken] == "failed"
    assert (broken, "failed", "it broke") in made.told
    scheduler, jobs = made()
    scheduler.run(made.names)
    assert jobs.started == []
    scheduler, jobs = made()
    scheduler.run(made.names, retry=True)
    assert jobs.started == [broken]
    assert set(scheduler.settled.values()) == {"finished"}


@pytest.mark.parametrize("before", ["nothing", "running"])
def test_a_job_that_died_without_a_word_is_a_failed_run(made, before):
    lost = made.names[0]
    scheduler, _ = made({lost: [(-9, None)]})
    if before == "running":
        folder_of(made.workdir, lost).mkdir(parents=True)
        records.write(folder_of(made.workdir, lost), {"name": lost, "status": "running"})
    scheduler.run(made.names)
    assert records.read(folder_of(made.workdir, lost))["error"] == "killed by SIGKILL"
    assert states(made.names, made.workdir) == dict.fromkeys(made.names, "finished") | {lost: "failed"}


def test_the_last_line_that_a_dead_job_printed_is_its_error(made):
    lost = made.names[0]
    scheduler, _ = made({lost: [(1, None)]})
    folder_of(made.workdir, lost).mkdir(parents=True)
    (folder_of(made.workdir, lost) / "log.txt").write_text("step 1\nImportError: no\n\n")
    scheduler.run(made.names)
    assert records.read(folder_of(made.workdir, lost))["error"] == "ImportError: no"


def test_a_run_that_was_stopped_goes_on(made):
    name = made.names[2]
    scheduler, jobs = made({name: [(0, "stopped"), (0, "stopped")]})
    scheduler.run(made.names)
    assert jobs.started.count(name) == 3
    assert scheduler.settled[name] == "finished"


def test_a_job_that_was_told_to_end_before_it_could_save_is_no_failure(made):
    name = made.names[0]
    scheduler, jobs = made({name: [(-15, None)]})
    scheduler.run(made.names)
    assert jobs.started.count(name) == 2
    assert scheduler.settled[name] == "finished"


def test_a_run_that_another_process_has_is_waited_for_and_not_started(made):
    name, looked = made.names[0], []
    in_use = records.in_use

    def elsewhere(folder):
        if folder.name != name or len(looked) > 20:
            return in_use(folder)
        looked.append(folder)
        if len(looked) == 20:
            folder.mkdir(parents=True, exist_ok=True)
            records.write(folder, {"status": "finished"})
        return True

    with pytest.MonkeyPatch.context() as patch:
        scheduler, jobs = made()
        patch.setattr(records, "in_use", elsewhere)
        scheduler.run(made.names)
    assert name not in jobs.started
    assert scheduler.settled[name] == "finished"
    assert (name, "running", "in another process") in made.told


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_what_another_process_did_since_the_start_is_not_done_again(made, state):
    last = made.names[-1]
    scheduler, jobs = made(parallel=1)

    def elsewhere():
        folder_of(made.workdir, last).mkdir(parents=True, exist_ok=True)
        records.write(folder_of(made.workdir, last), {"status": state})

    scheduler.run(made.names, tick=elsewhere)
    assert sorted(jobs.started) == sorted(made.names[:-1])
    assert scheduler.settled[last] == state


def test_a_run_that_another_process_took_first_is_left_to_it(made):
    name = made.names[0]
    scheduler, jobs = made({name: [(BUSY, None)]})
    scheduler.run(made.names)
    assert jobs.started.count(name) == 2
    assert scheduler.settled[name] == "finished"


def test_only_runs_of_such_names(made):
    assert choose(made.sweep, "seed=1_*") == [made.names[1]]
    with pytest.raises(UserError, match="no run of"):
        choose(made.sweep, "seed=9*")


def test_a_folder_with_other_things_is_refused(made):
    made.workdir.mkdir()
    (made.workdir / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="not a sweep"):
        made()


def test_a_finished_run_of_another_config_is_refused(made, sweep_file):
    scheduler, _ = made()
    scheduler.run(made.names)
    changed = load_sweep(sweep_file("product({'seed': range(5)})", "common['train.steps'] = 5"))
    assert list(changed.runs) == made.names
    with pytest.raises(UserError, match="a different config"):
        claim(changed, made.workdir)
    claim(load_sweep(sweep_file("product({'seed': range(6)})")), made.workdir)  # more runs are welcome
    assert len(json.loads((made.workdir / "sweep.json").read_text())["runs"]) == 6
