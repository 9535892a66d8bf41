"""Writers that are killed with SIGKILL at random moments, 50 times per verb: the library is the old or the new one."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from memtx.library import export, fork, import_file, merge, resize
from tests.library.fakes import create_fake, open_fake

TEXTS = {name: f"This is {name}. It has some sentences. They are all short. The last of {name}." for name in "abcdefgh"}


def prepare(folder: Path) -> None:
    library, other = create_fake(folder / "library"), create_fake(folder / "other")
    for i, (name, text) in enumerate(TEXTS.items()):
        (library if i % 2 else other).read(text, document=name)
    export(other, folder / "exported", namespace="*")


def mask(folder: Path) -> None:
    library = open_fake(folder / "library")
    library.forget(entries=[f"{document.id}:0" for document in library.documents])


# Each verb changes the library, and says which documents it has afterwards.
VERBS = {
    "read": (lambda folder: open_fake(folder / "library").read(TEXTS["a"], document="a"), "abdfh"),
    "replace": (lambda folder: open_fake(folder / "library").read("Another text.", document="b"), "bdfh"),
    "forget": (lambda folder: open_fake(folder / "library").forget(document="b"), "dfh"),
    "mask": (mask, "bdfh"),
    "resize": (lambda folder: resize(open_fake(folder / "library"), 4), "h"),
    "merge": (lambda folder: merge(open_fake(folder / "library"), open_fake(folder / "other"), namespace="*"), "abcdefgh"),
    "import": (lambda folder: import_file(folder / "library", folder / "exported"), "abcdefgh"),
    "recall": (lambda folder: open_fake(folder / "library").recall("It has"), "bdfh"),
}


def killed(run, after: float) -> bool:
    """Run in a child process, which is killed after some seconds. Returns whether it was killed before it ended."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            run()
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.thorough
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new_library(tmp_path, verb):
    run, after = VERBS[verb]
    rng, ends = random.Random(0), []
    for attempt in range(50):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        prepare(folder)
        old = open_fake(folder / "library").digest()
        hit = killed(lambda folder=folder: run(folder), rng.uniform(0, 0.02))
        library = open_fake(folder / "library")
        names, digest = "".join(sorted(d.name for d in library.documents)), library.digest()
        if digest == old:
            assert names == "bdfh"
            run(folder)  # nothing that is left over is in the way
            library = open_fake(folder / "library")
            digest, names = library.digest(), "".join(sorted(d.name for d in library.documents))
        assert names == after
        assert library.folder.stored() == library.record.files()
        ends.append((hit, digest))
    assert len({digest for _, digest in ends}) == 1  # the new library is always the same
    assert sum(hit for hit, _ in ends) > 10, "too few kills hit a running writer"


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_copy_killed_at_any_moment_is_whole_or_absent(tmp_path):
    prepare(tmp_path)
    whole, rng = open_fake(tmp_path / "library").digest(), random.Random(1)
    for attempt in range(50):
        for name, run in (("fork", fork), ("export", export)):
            path = tmp_path / f"{name}{attempt}"
            killed(lambda run=run, path=path: run(open_fake(tmp_path / "library"), path), rng.uniform(0, 0.02))
            if path.exists():
                again = open_fake(path) if name == "fork" else import_file(tmp_path / f"read{attempt}", path)[0]
                assert again.digest() == whole
            else:
                run(open_fake(tmp_path / "library"), path)
            assert path.exists()
