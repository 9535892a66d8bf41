"""Checkpoints and small files of a run in a bucket, for which a local stand-in answers (tests/bucket.py)."""

import base64
import shutil
import sys
from pathlib import Path

import pytest

from memtx.errors import UserError
from memtx.files import remote
from memtx.files.remote import Mirror, is_remote, local, place
from memtx.runs.load import is_pretrained, load_run
from memtx.training.checkpoint import Checkpointer, read_meta, restore
from memtx.training.seal import SEAL, faults
from tests.training.runs import CONFIG, abstract, resume, same, save, trees

pytest.importorskip("gcsfs", reason="gcsfs is not installed (extra gcs)")
RUN = "gs://bucket/runs/a"


def steps(bucket) -> list[int]:
    return sorted({int(name.split("/")[3]) for name in bucket.objects if name.startswith("runs/a/checkpoints/")})


def flip(bucket, step: int, leaf: str) -> str:
    """Change the last byte of a leaf's data."""
    name = next(n for n in sorted(bucket.objects) if f"checkpoints/{step}/" in n and leaf in n and not n.endswith(".zarray"))
    bucket.put(name, bucket.objects[name][:-1] + bytes([bucket.objects[name][-1] ^ 1]))
    return name


# --- addresses --------------------------------------------------------------------------------------------------------------


def test_folders_are_not_addresses(tmp_path):
    for name in ("runs/a", "/runs/a", "C:/runs", "a:b", "runs:1/a", ".", "gs", "gs:", str(tmp_path)):
        assert not is_remote(name), name
        assert place(name) == Path(name)
    for name in (RUN, Path(RUN), "s3://bucket/a"):  # pathlib drops the second slash
        assert is_remote(name)


def test_an_address_has_a_path(bucket):
    assert {str(place(name)) for name in (RUN, Path(RUN), f"{RUN}/", "gs://bucket//runs/a")} == {
        RUN,
        "gs://bucket//runs/a".replace("//runs", "/runs"),
    }


@pytest.mark.parametrize(
    "address", ["gs://", "gs://bucket", "gs://bucket/", "gs:///a", "gs://bucket/a*", "gs://b/a/../c", "gs://b/a\n"]
)
def test_addresses_that_are_not_valid(address):
    with pytest.raises(UserError, match="must have the form gs://BUCKET/FOLDER"):
        place(address)


def test_other_addresses_are_refused():
    with pytest.raises(UserError, match="s3://bucket/a is not an address that memtx knows"):
        place("s3://bucket/a")
    with pytest.raises(UserError, match="the address of a bucket, which this command cannot use"):
        local(RUN)


def test_without_gcsfs_one_line_names_the_extra(monkeypatch):
    remote._prepare.cache_clear()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gcsfs is not installed; run pip install '\.\[gcs\]'"):
        place(RUN)
    remote._prepare.cache_clear()


# --- the bucket cannot be used ----------------------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist(bucket):
    with pytest.raises(UserError, match="the bucket gs://nowhere does not exist"):
        place("gs://nowhere/a")


def test_a_bucket_without_permission_to_read(bucket):
    bucket.forbidden.add("GET")
    remote._reach.cache_clear()
    with pytest.raises(UserError, match="no permission for gs://bucket .*roles/storage.objectAdmin"):
        place(RUN)


def test_a_bucket_without_permission_to_write(bucket):
    bucket.forbidden.add("POST")
    with pytest.raises(UserError, match=f"cannot write in {RUN}: .*does not have permission"):
        Checkpointer(RUN, CONFIG)


def test_a_bucket_without_a_network(bucket, monkeypatch):
    from google.cloud import storage

    nobody = {"api_endpoint": "http://127.0.0.1:9"}
    client = storage.Client(project="p", client_options=nobody, use_auth_w_custom_endpoint=False)
    monkeypatch.setattr(remote, "_client", lambda: client)
    with pytest.raises(UserError, match="cannot reach gs://elsewhere: .*refused"):
        place("gs://elsewhere/a")


# --- checkpoints ------------------------------------------------------------------------------------------------------------


def test_tensorflow_is_not_used_where_it_is_installed(bucket, monkeypatch):
    from etils.epath import backend, gpath

    gpath._is_tf_installed.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: "found")
    assert place(RUN)._backend is backend.fsspec_backend
    gpath._is_tf_installed.cache_clear()


@pytest.mark.thorough
def test_a_run_is_saved_sealed_and_restored(bucket):
    with Checkpointer(RUN, CONFIG, keep=2) as keeper:
        for step in (1, 10, 15):  # the name of the one that is deleted begins those of the others
            save(keeper, step)
    assert steps(bucket) == [10, 15]
    assert not faults(place(f"{RUN}/checkpoints/10"))
    assert f"runs/a/checkpoints/15/{SEAL}" in bucket.objects
    same(resume(RUN), 15)
    assert read_meta(RUN)["step"] == 15
    assert "tensorflow" not in sys.modules


@pytest.mark.thorough
def test_the_seal_is_not_written_before_the_data(bucket):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
    written = [name for method, name in bucket.log if method == "PUT" and "/5/" in name and name.count("/") > 4]
    seal = next(i for i, (method, name) in enumerate(bucket.log) if name.endswith(SEAL))
    assert all(("PUT", name) in bucket.log[:seal] for name in written)


@pytest.mark.thorough
def test_a_flipped_byte_is_found_and_the_older_step_is_used(bucket):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
        save(keeper, 10)
    flip(bucket, 10, "params/embed")
    warned = []
    same(restore(RUN, **abstract(trees(0)), warn=warned.append), 5)
    assert steps(bucket) == [5, 10]
    same(resume(RUN, warn=warned.append), 5)
    assert warned == ["checkpoint 10 is damaged (params/embed has changed); using an older one, 5"] * 2
    assert steps(bucket) == [5]
    assert any(name.startswith("runs/a/damaged/10/params/embed/") for name in bucket.objects)
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 10)
    flip(bucket, 10, "params/embed")
    same(resume(RUN, warn=warned.append), 5)  # moved to the place of the damaged one


@pytest.mark.thorough
def test_a_seal_that_the_bucket_does_not_give_is_no_damage(bucket):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
        save(keeper, 10)
    bucket.closed.add(f"runs/a/checkpoints/10/{SEAL}")
    for read in (resume, read_meta, lambda run: restore(run, **abstract(trees(0)))):
        with pytest.raises(UserError, match=f"cannot read {RUN}/checkpoints/10: "):
            read(RUN)
    bucket.closed.clear()
    assert steps(bucket) == [5, 10]
    same(resume(RUN), 10)


def test_lost_and_added_objects_are_found(bucket):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
    step = place(f"{RUN}/checkpoints/5")
    assert not faults(step)
    bucket.put("runs/a/checkpoints/5/params/more/0", b"1")
    assert faults(step) == ["params/more was added"]
    bucket.delete("runs/a/checkpoints/5/params/more/0")
    bucket.delete("runs/a/checkpoints/5/meta/data.json")
    assert faults(step) == faults(step, "meta") == ["meta has changed"]
    assert not faults(step, "params")


@pytest.mark.thorough
def test_a_step_that_was_interrupted_is_not_used(bucket):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
        save(keeper, 10)
    for name in ("commit_success.txt", SEAL):  # Orbax writes the one last, memtx the other just before it
        bucket.delete(f"runs/a/checkpoints/10/{name}")
    warned = []
    same(restore(RUN, **abstract(trees(0)), warn=warned.append), 5)
    assert warned == ["checkpoint 10 is damaged (saving it was interrupted); using an older one, 5"]
    same(resume(RUN), 5)
    assert steps(bucket) == [5]


@pytest.mark.thorough
def test_a_step_without_the_last_object_of_orbax_is_not_continued(bucket):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
        save(keeper, 10)
    bucket.delete("runs/a/checkpoints/10/commit_success.txt")
    same(resume(RUN), 5)


@pytest.mark.thorough
def test_a_step_stays_intact_when_a_run_is_copied(bucket, tmp_path):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
    for name, data in bucket.objects.items():
        path = tmp_path / "tmp" / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    copy = tmp_path / "tmp" / "copy" / "runs" / "a"
    same(resume(copy), 5)
    with Checkpointer(copy, CONFIG) as keeper:
        save(keeper, 10)  # sealed on the disk
    for path in (copy / "checkpoints" / "10").rglob("*"):
        if path.is_file():
            bucket.put(f"runs/a/{path.relative_to(copy).as_posix()}", path.read_bytes())
    same(restore(RUN, **abstract(trees(0)), warn=pytest.fail), 10)
    flip(bucket, 10, "opt_state")
    assert faults(place(f"{RUN}/checkpoints/10"))
    shutil.rmtree(tmp_path / "tmp" / "copy")


@pytest.mark.thorough
def test_an_object_without_an_md5_is_read(bucket, monkeypatch):
    with Checkpointer(RUN, CONFIG) as keeper:
        save(keeper, 5)
    monkeypatch.setattr(remote, "_md5", lambda info: None)  # an upload in parts
    same(resume(RUN), 5)
    flip(bucket, 5, "params/embed")
    assert faults(place(f"{RUN}/checkpoints/5")) == ["params/embed has changed"]


def test_the_md5_is_that_of_the_bucket():
    assert remote._md5({"md5Hash": base64.b64encode(bytes(16)).decode()}) == "00" * 16


# Orbax closes its event loop before TensorStore has answered.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.thorough
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_bucket_that_can_no_longer_be_written_is_one_line(bucket, method):
    def lose_it():
        with Checkpointer(RUN, CONFIG, keep=1) as keeper:
            save(keeper, 5)
            bucket.forbidden.add(method)
            save(keeper, 10)

    with pytest.raises(UserError, match=f"cannot write in {RUN}/checkpoints: .*does not have permission"):
        lose_it()
    bucket.forbidden.clear()
    same(resume(RUN), 10 if method == "DELETE" else 5)


# --- the folder of a run ----------------------------------------------------------------------------------------------------


def test_an_address_of_other_things_is_refused(bucket):
    bucket.put("runs/a/notes.txt", b"notes")
    with pytest.raises(UserError, match="is not the workdir of a run"):
        Checkpointer(RUN, CONFIG)
    assert set(bucket.objects) == {"runs/a/notes.txt", "runs/ab/config.json"}


def test_another_config_is_refused(bucket):
    Checkpointer(RUN, CONFIG).close()
    with pytest.raises(UserError, match="belongs to a run with a different config"):
        Checkpointer(RUN, CONFIG | {"model": {"width": 64}})


def test_a_bucket_without_a_run_cannot_be_loaded(bucket):
    assert not is_pretrained(RUN)
    with pytest.raises(UserError, match=f"{RUN} is not the workdir of a run"):
        load_run(RUN)


# --- small files ------------------------------------------------------------------------------------------------------------


def test_a_mirror_copies_what_changed(bucket):
    with Mirror(RUN) as files:
        assert not files.folder.is_relative_to("gs:")
        (files.folder / "a.txt").write_text("one")
        (files.folder / "board").mkdir()
        (files.folder / "board" / "b").write_text("two")
        files.push()
        files.push()
        (files.folder / "a.txt").write_text("three")
    assert [name for _, name in bucket.log] == ["runs/a/a.txt", "runs/a/board/b", "runs/a/a.txt"]
    assert bucket.objects["runs/a/a.txt"] == b"three"


def test_a_mirror_fetches_files(bucket):
    bucket.put("runs/a/a.txt", b"one")
    bucket.log.clear()
    with Mirror(RUN) as files:
        files.pull("a.txt", "absent.txt")
        assert (files.folder / "a.txt").read_text() == "one"
    assert not bucket.log


def test_a_mirror_of_a_folder_is_the_folder(tmp_path):
    with Mirror(tmp_path) as files:
        files.pull("a.txt")
        (files.folder / "a.txt").write_text("one")
    assert files.folder == files.target == tmp_path
    assert (tmp_path / "a.txt").read_text() == "one"


def test_files_are_copied_and_the_temporary_folder_is_deleted_after_an_error(bucket):
    def fail():
        with Checkpointer(RUN, CONFIG) as keeper:
            (keeper.files.folder / "metrics.jsonl").write_text("line\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bucket.objects["runs/a/metrics.jsonl"] == b"line\n"


def test_metrics_are_copied_before_the_checkpoint(bucket):
    with Checkpointer(RUN, CONFIG) as keeper:
        (keeper.files.folder / "metrics.jsonl").write_text("line\n")
        save(keeper, 5)
    order = [name for _, name in bucket.log]
    assert order.index("runs/a/metrics.jsonl") < order.index(f"runs/a/checkpoints/5/{SEAL}")
