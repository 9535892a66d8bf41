"""A library against a plain dictionary, over random histories of all verbs, with crashes at any write."""

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from memtx.errors import UserError
from memtx.library import diff, export, fork, import_file, merge, resize
from memtx.library.record import Record
from tests.library.fakes import FakeSentences, create_fake, open_fake

NAMES, SPACES = ("a", "b", "c"), ("alice", "bob")
# Namespaces have conflicting texts about the same things.
TEXTS = (
    "The sky is blue.",
    "The sky is green. It rains.",
    "One. Two! Three?",
    "Zebra",
    "a long sentence without any end at all in it",
)
QUERIES = ("The sky is blue.", "Two!", "something else")
FAKE = FakeSentences()


class Crash(Exception):
    """The process dies here."""


class Histories(RuleBasedStateMachine):
    """Some libraries, and for each the texts that it should remember, by (namespace, name), in the order of reading."""

    digests: ClassVar[dict[tuple, str]] = {}  # of every content that any history has reached
    contents: ClassVar[dict[str, tuple]] = {}

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.numbers = itertools.count()
        self.libraries, self.known = [create_fake(self.new("library"))], [{}]

    def new(self, kind: str) -> Path:
        return self.folder / f"{kind}{next(self.numbers)}"

    def pick(self, data) -> int:
        return data.draw(st.integers(0, len(self.libraries) - 1))

    @rule(data=st.data(), name=st.sampled_from(NAMES), space=st.sampled_from(SPACES), text=st.sampled_from(TEXTS))
    def read(self, data, name, space, text):
        i = self.pick(data)
        assert self.libraries[i].read(text, document=name, namespace=space) == len(sentences(text))
        if self.known[i].get((space, name)) != text:
            self.known[i].pop((space, name), None)
            self.known[i][space, name] = text

    @rule(
        data=st.data(), query=st.sampled_from(QUERIES), k=st.integers(1, 6), spaces=st.sets(st.sampled_from(SPACES), min_size=1)
    )
    def recall(self, data, query, k, spaces):
        i = self.pick(data)
        found = self.libraries[i].recall(query, k=k, namespace=sorted(spaces))
        wanted = best(self.known[i], query, k, spaces)
        assert [(f.namespace, f.document, f.position, f.text) for f in found] == [w[1:] for w in wanted]
        np.testing.assert_allclose([f.score for f in found], [w[0] for w in wanted], atol=1e-6)

    @rule(data=st.data(), name=st.sampled_from(NAMES), space=st.sampled_from((None, *SPACES)), again=st.booleans())
    def forget_document(self, data, name, space, again):
        i = self.pick(data)
        mine = [key for key in self.known[i] if key[1] == name and space in (None, key[0])]
        if len(mine) != 1:
            with pytest.raises(UserError, match="no document|several namespaces"):
                self.libraries[i].forget(document=name, namespace=space)
            return
        certificate = self.libraries[i].forget(document=name, namespace=space, reread=again)
        assert self.libraries[i].verify(certificate)
        text = self.known[i].pop(mine[0])
        assert text not in (self.libraries[i].path / "record.jsonl").read_text() or text in self.known[i].values()

    @rule(data=st.data(), space=st.sampled_from(SPACES))
    def forget_namespace(self, data, space):
        i = self.pick(data)
        if not any(key[0] == space for key in self.known[i]):
            with pytest.raises(UserError, match="no document is in"):
                self.libraries[i].forget(namespace=space)
            return
        assert self.libraries[i].verify(self.libraries[i].forget(namespace=space))
        self.known[i] = {key: text for key, text in self.known[i].items() if key[0] != space}

    @rule(data=st.data(), most=st.integers(0, 8))
    def resize_to(self, data, most):
        i = self.pick(data)
        resize(self.libraries[i], most)
        while sum(len(sentences(text)) for text in self.known[i].values()) > most:
            del self.known[i][next(iter(self.known[i]))]

    @precondition(lambda self: len(self.libraries) < 4)
    @rule(data=st.data())
    def fork_it(self, data):
        i = self.pick(data)
        self.libraries.append(open_fake(fork(self.libraries[i], self.new("fork")).path))
        self.known.append(dict(self.known[i]))

    @rule(data=st.data(), space=st.sampled_from(("*", *SPACES)))
    def export_and_import(self, data, space):
        i, j, file = self.pick(data), self.pick(data), self.new("file")
        mine = {key: text for key, text in self.known[i].items() if space in ("*", key[0])}
        if not mine:
            with pytest.raises(UserError, match="no documents in the namespace"):
                export(self.libraries[i], file, namespace=space)
            return
        assert export(self.libraries[i], file, namespace=space) == len(mine)
        for key, text in self.known[i].items():
            assert key in mine or text in mine.values() or text.encode() not in file.read_bytes()
        self.add(j, mine, lambda: import_file(self.libraries[j].path, file)[1])

    @rule(data=st.data(), space=st.sampled_from(("*", *SPACES)))
    def merge_two(self, data, space):
        i, j = self.pick(data), self.pick(data)
        mine = {key: text for key, text in self.known[i].items() if space in ("*", key[0])}
        if mine:
            self.add(j, mine, lambda: merge(self.libraries[j], self.libraries[i], namespace=space))

    def add(self, j, mine, run):
        if any(self.known[j].get(key, text) != text for key, text in mine.items()):
            with pytest.raises(UserError, match="other documents of the same names"):
                run()
            return
        assert run() == len(mine.keys() - self.known[j].keys())
        self.known[j] |= {key: text for key, text in mine.items() if key not in self.known[j]}

    @rule(data=st.data(), name=st.sampled_from(NAMES), text=st.sampled_from(TEXTS), writes=st.integers(0, 4))
    def die_while_reading(self, data, name, text, writes):
        """The process dies after some writes: the library is the old or the new one."""
        i = self.pick(data)
        old, new = dict(self.known[i]), {key: t for key, t in self.known[i].items() if key != ("alice", name)}
        new["alice", name] = text
        with dying(writes), contextlib.suppress(Crash):
            self.libraries[i].read(text, document=name, namespace="alice")
        self.reopen(i)
        now = contents(self.libraries[i])
        assert now in (content(old), content(new))
        if now != content(old):
            self.known[i] = new

    @rule(data=st.data())
    def save_and_restore(self, data):
        self.reopen(self.pick(data))

    def reopen(self, i):
        self.libraries[i] = open_fake(self.libraries[i].path)

    @invariant()
    def every_library_is_its_texts(self):
        for library, known in zip(getattr(self, "libraries", ()), getattr(self, "known", ()), strict=True):
            assert contents(library) == content(known)
            digest = library.digest()
            assert self.digests.setdefault(content(known), digest) == digest  # whatever the history
            assert self.contents.setdefault(digest, content(known)) == content(known)

    @rule(data=st.data())
    def compare(self, data):
        i, j = self.pick(data), self.pick(data)
        found, (mine, theirs) = diff(self.libraries[i], self.libraries[j]), (self.known[i], self.known[j])
        assert {d.key for d in found.here} == mine.keys() - theirs.keys()
        assert {d.key for d in found.there} == theirs.keys() - mine.keys()
        assert {d.key for d in found.changed} == {key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def content(known) -> tuple:
    return tuple(sorted(known.items()))


def contents(library) -> tuple:
    return tuple(sorted((document.key, document.text) for document in library.documents))


def sentences(text: str) -> list[tuple[int, str]]:
    """The sentences of TEXTS, by hand."""
    if text == TEXTS[-1]:  # ten words, of which four fit
        parts = ["a long sentence", "without any", "end at", "all in it"]
        return [(text.index(part), part) for part in parts]
    return [(text.index(part), part) for part in [text[text.index(p) :][: len(p) + 1] for p in split(text)]]


def split(text: str) -> list[str]:
    return [part.strip() for part in text.replace("!", ".").replace("?", ".").split(".") if part.strip()]


def best(known, query, k, spaces) -> list[tuple]:
    """Brute force over all sentences of the visible documents."""
    rows = [
        (float(FAKE.vectors([part])[0] @ FAKE.vectors([query])[0]), space, name, at, part)
        for (space, name), text in sorted(known.items())
        if space in spaces
        for at, part in sentences(text)
    ]
    return sorted(rows, key=lambda row: -row[0])[:k]


class dying:
    """Within this context the process dies at the write with this number."""

    def __init__(self, writes: int):
        self.writes = writes

    def __enter__(self):
        import memtx.library.folder as module

        self.module, self.real = module, (module.write_atomic, module.Folder.sweep)
        left = itertools.count(self.writes, -1)

        def write(path, content):
            if next(left) <= 0:
                part = path.with_name(path.name + ".part")
                part.write_bytes((content.encode() if isinstance(content, str) else content)[:10])
                raise Crash
            self.real[0](path, content)

        def sweep(folder, record: Record):
            if next(left) <= 0:
                raise Crash
            self.real[1](folder, record)

        module.write_atomic, module.Folder.sweep = write, sweep

    def __exit__(self, *exc):
        self.module.write_atomic, self.module.Folder.sweep = self.real


def test_random_histories_agree_with_a_dictionary(pytestconfig):
    many = settings(
        max_examples=pytestconfig.getoption("--histories"),
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    run_state_machine_as_test(Histories, settings=many)
