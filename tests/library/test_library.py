"""The folder of a library: certificates, locks, damage, full disks, and names."""

import errno
import gc
import json
import multiprocessing
import threading
import time
import weakref

import pytest

from memtx import cli
from memtx.errors import UserError
from memtx.library import export, fork, import_file, merge, migrate, resize
from memtx.library.library import Library
from tests.library.fakes import FakeSentences, create_fake, open_fake

KEY = b"0123456789abcdef"


@pytest.fixture
def found(tmp_path) -> Library:
    library = create_fake(tmp_path / "library")
    library.read("The sky is blue. It rains.", document="sky", namespace="alice")
    library.read("The sky is green. It snows.", document="sky", namespace="bob")
    library.read("Trees grow. They are tall.", document="trees", namespace="alice")
    return library


# --- reading and recalling


def test_reading_the_same_text_again_changes_nothing_and_another_text_replaces_it(found):
    version = found.record.version
    assert found.read("The sky is blue. It rains.", document="sky", namespace="alice") == 2
    assert found.record.version == version
    assert found.read("The sky is grey.", document="sky", namespace="alice") == 1
    assert [entry.text for entry in found.recall("It rains.", k=9, namespace="alice")] != []
    assert "It rains." not in [entry.text for entry in found.recall("It rains.", k=9, namespace="alice")]


@pytest.mark.parametrize(
    ("query", "around", "text"),
    [("Two.", 0, "Two."), ("Two.", 1, "One. Two. Three."), ("One.", 1, "One. Two."), ("Four.", 9, "One. Two. Three. Four.")],
)
def test_a_sentence_comes_with_its_neighbours_in_the_document(found, query, around, text):
    whole = "One. Two. Three. Four."
    found.read(whole, document="numbers", namespace="alice")
    [best] = found.recall(query, k=1, namespace="alice", around=around)
    assert best.text == text == whole[slice(*best.span)]
    assert best.position == whole.index(query)
    with pytest.raises(UserError, match="around at least 0"):
        found.recall(query, around=-1)
    with pytest.raises(UserError, match="a library of sentences has none"):
        found.recall(query, namespace="alice", first=1)


def test_a_file_is_read_under_its_name(found, tmp_path):
    (tmp_path / "notes.txt").write_bytes("\ufeffSome notes.".encode())
    assert found.read(tmp_path / "notes.txt") == 1
    assert found.recall("Some notes.")[0].document == "notes.txt"
    assert found.recall("Some notes.")[0].text == "Some notes."


def test_many_documents_are_read_in_few_changes_and_those_before_a_fault_are_kept(found):
    version = found.record.version
    assert found.read_all([(f"n{n}", f"Number {n}. It counts.") for n in range(130)], namespace="many") == 260
    assert found.record.version == version + 3
    with pytest.raises(UserError, match="'empty' has no text"):
        found.read_all([("first", "One."), ("empty", " "), ("last", "Two.")], namespace="few")
    assert [document.name for document in found.record.visible("few")] == ["first"]


@pytest.mark.parametrize("name", ["", "*", " a", "a\n", "a\x1b[31m", "x" * 201])
def test_names_are_printable(found, name):
    with pytest.raises(UserError, match="the name of a document must have"):
        found.read("text", document=name)
    with pytest.raises(UserError, match="the name of a namespace must have"):
        found.read("text", document="a", namespace=name)


@pytest.mark.parametrize(("text", "message"), [("  \n ", "has no text"), ("a\ud800", "UTF-8 cannot encode")])
def test_a_text_that_cannot_be_read_is_one_line_and_changes_nothing(found, text, message):
    digest = found.digest()
    with pytest.raises(UserError, match=message):
        found.read(text, document="a")
    assert found.digest() == digest


def test_a_query_of_an_unknown_namespace_finds_nothing(found):
    assert found.recall("The sky is blue.", namespace="carol") == []
    assert found.recall("The sky is blue.") == []  # the namespace "default"
    with pytest.raises(UserError, match="k must be at least 1"):
        found.recall("The sky is blue.", k=0)


def test_two_objects_and_another_process_see_each_others_changes(found):
    other = open_fake(found.path)
    other.read("New text.", document="new", namespace="alice")
    assert {document.name for document in found.documents} == {"sky", "trees", "new"}
    assert found.recall("New text.", k=1, namespace="alice")[0].document == "new"


def test_a_query_during_a_change_sees_the_version_before_or_after_it(found, monkeypatch):
    read, other = found.folder.read, open_fake(found.path)

    def forget_then_read(digest):
        if any(document.name == "trees" for document in other.documents):
            other.forget(document="trees")  # deletes a file that the query is about to read
        return read(digest)

    monkeypatch.setattr(found.folder, "read", forget_then_read)
    assert {entry.document for entry in found.recall("Trees grow.", k=9, namespace="alice")} == {"sky"}


def test_a_thread_that_read_an_older_record_does_not_make_it_look_current(found, monkeypatch):
    load, begun, resume = found.folder.record, threading.Event(), threading.Event()

    def load_slowly():
        record = load()
        if threading.current_thread() is slow:
            begun.set()
            assert resume.wait(20)
        return record

    class Interleaved(Library):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if threading.current_thread() is not slow and not resume.is_set():  # after the first store
                resume.set()
                slow.join(20)

    slow = threading.Thread(target=lambda: found.record)
    monkeypatch.setattr(found.folder, "record", load_slowly)
    open_fake(found.path).read("One.", document="one")  # so that both threads load the record
    slow.start()
    assert begun.wait(20)
    open_fake(found.path).read("Two.", document="two")
    found.__class__ = Interleaved
    assert found.record.version == found.record.version == load().version
    assert resume.is_set()
    assert {document.name for document in found.documents} == {"sky", "trees", "one", "two"}


def test_a_change_begins_with_the_record_on_disk(found, monkeypatch):
    stamp = found.record and found.folder.stamp()
    monkeypatch.setattr(found.folder, "stamp", lambda: stamp)  # the older record looks current
    open_fake(found.path).read("One.", document="one")
    assert "one" not in {document.name for document in found.documents}  # control
    found.read("Two.", document="two")
    assert {document.name for document in open_fake(found.path).documents} == {"sky", "trees", "one", "two"}


# --- forgetting and certificates


def test_a_name_in_two_namespaces_is_never_guessed(found):
    with pytest.raises(UserError, match=r"several namespaces have a document 'sky' \(alice, bob\)"):
        found.forget(document="sky")
    found.forget(document="sky", namespace="bob")
    assert {document.key for document in found.documents} == {("alice", "sky"), ("alice", "trees")}


@pytest.mark.parametrize("what", [{}, {"document": "sea"}, {"namespace": "carol"}, {"entries": ["nothing:0"]}])
def test_forgetting_nothing_is_an_error(found, what):
    with pytest.raises(UserError, match="name a document|no document|no entry"):
        found.forget(**what)


@pytest.mark.parametrize("key", [None, KEY])
def test_a_certificate_verifies_and_one_altered_byte_makes_it_fail(found, key):
    certificate = json.loads(json.dumps(found.forget(document="trees", key=key)))
    assert found.verify(certificate, key=key)
    text = json.dumps(certificate)
    for at in range(0, len(text), 7):
        if text[at].isalnum():
            changed = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
            try:
                altered = json.loads(changed)
            except ValueError:
                continue
            if altered != certificate:
                with pytest.raises(UserError, match="certificate"):
                    found.verify(altered, key=key)


def test_a_signature_needs_its_key(found):
    signed, plain = found.forget(document="trees", key=KEY), found.forget(document="sky", namespace="bob")
    with pytest.raises(UserError, match="give the key"):
        found.verify(signed)
    with pytest.raises(UserError, match="another key"):
        found.verify(signed, key=b"f" * 16)
    with pytest.raises(UserError, match="not signed"):
        found.verify(plain, key=KEY)


def test_a_certificate_stays_true_after_other_changes_and_fails_when_the_document_is_read_again(found):
    certificate = found.forget(document="trees", reread=True)
    found.read("Other text.", document="other")
    assert found.verify(certificate, reread=True)
    found.read("Trees grow. They are tall.", document="trees", namespace="alice")
    with pytest.raises(UserError, match="'trees' is in .* it was read again at 2"):
        found.verify(certificate)


def test_a_certificate_fails_when_the_text_is_read_again_under_another_name_and_names_copies_that_stay(found):
    found.read("Trees grow. They are tall.", document="copy", namespace="alice")
    found.read("Trees grow. They are tall.", document="trees", namespace="bob")
    certificate = found.forget(document="trees", namespace="alice")
    assert certificate["removed"][0]["copies"] == ["copy"]  # and nothing of bob
    assert found.verify(certificate)
    found.read("Trees grow. They are tall.", document="again", namespace="alice")
    with pytest.raises(UserError, match="the text of 'trees' is in .* again, as 'again'"):
        found.verify(certificate)


def test_a_certificate_of_another_library_fails(found, tmp_path):
    other = create_fake(tmp_path / "other")
    other.read("Trees grow.", document="trees")
    certificate = other.forget(document="trees")
    empty = create_fake(tmp_path / "empty")
    with pytest.raises(UserError, match="has the same documents, but another history: it is at change 0, and .* 2"):
        empty.verify(certificate)
    empty.read("Sky.", document="sky")
    with pytest.raises(UserError, match="is an older copy, or another library: it is at change 1, and"):
        empty.verify(certificate)


def test_a_certificate_holds_for_the_library_that_forgot_and_its_forks(found, tmp_path):
    certificate = found.forget(document="trees")
    assert fork(found, tmp_path / "fork").verify(certificate)
    export(found, tmp_path / "file", namespace="*")
    import_file(tmp_path / "copy", tmp_path / "file")
    with pytest.raises(UserError, match="has the same documents, but another history: .* verify it with the library that"):
        open_fake(tmp_path / "copy").verify(certificate)


def test_a_library_shows_its_folder_and_its_contents(found):
    assert repr(found) == f"<Library '{found.path}': sentences of fake, 3 documents>"


def test_a_library_of_sentences_cannot_be_explained_and_says_what_can(found):
    with pytest.raises(UserError, match=r"no language model that could .* explain .*--model=smollm2 makes a library"):
        found.explain("The sky is blue.")


def test_a_name_without_its_folder_is_completed_in_the_error(found):
    for name in ("texts/clock.txt", "a/clock.txt", "boats.txt", "z.txt"):
        found.read("Ticks.", document=name)
    with pytest.raises(UserError, match=r"no document 'clock.txt'; the nearest: a/clock.txt, texts/clock.txt$"):
        found.forget(document="clock.txt")


def test_a_reread_notices_a_library_whose_entries_are_not_those_of_its_texts(found):
    lines = (found.path / "record.jsonl").read_text().splitlines()
    from memtx.library.record import Document, Record

    documents = tuple(
        Document(**{**json.loads(line), **({"text": "Other."} if i == 0 else {})}) for i, line in enumerate(lines[1:])
    )
    (found.path / "record.jsonl").write_text(Record(9, documents).dumps())
    with pytest.raises(UserError, match="differs from a library that reads"):
        open_fake(found.path).forget(document="trees", reread=True)


def test_masked_sentences_vanish_from_entries_and_text(found):
    entry = next(e for e in found.recall("It rains.", k=9, namespace="alice") if e.text == "It rains.")
    certificate = found.forget(entries=[entry.entry])
    assert certificate["method"] == "mask"
    assert found.verify(certificate)
    assert "It rains." not in [e.text for e in found.recall("It rains.", k=9, namespace="alice")]
    assert "rains" not in (found.path / "record.jsonl").read_text()
    with pytest.raises(UserError, match="no entry"):
        found.forget(entries=[f"{found.documents[0].id}:999"])


def test_forgotten_texts_are_nowhere_in_the_folder(found):
    found.recall("Trees grow.", namespace="alice")
    gone = next(document.id for document in found.documents if document.name == "trees")
    found.forget(document="trees")
    for path in found.path.rglob("*"):
        if path.is_file():
            assert b"tall" not in path.read_bytes()
            assert gone.encode() not in path.read_bytes()


# --- moving


@pytest.mark.parametrize("how", ["document", "entry", "replaced", "elsewhere"])
def test_forgotten_texts_and_vectors_of_the_last_search_are_not_kept_in_memory(found, how):
    entry = found.recall("The sky is blue.", k=1, namespace="alice")[0].entry
    index = weakref.ref(found.kind._searched[2])
    found.read("Bears sleep.", document="bears", namespace="bob")
    found.recall("The sky is blue.", namespace="alice")
    assert index()  # control: it is kept for the next search
    if how == "elsewhere":
        open_fake(found.path).forget(document="sky", namespace="alice")
        found.recall("anything", namespace="nobody")
    elif how == "replaced":
        found.read("The sky is grey.", document="sky", namespace="alice")
    else:
        found.forget(entries=[entry]) if how == "entry" else found.forget(document="sky", namespace="alice")
    gc.collect()
    assert not index()


def test_an_export_of_a_namespace_has_nothing_of_the_others(found, tmp_path):
    assert export(found, tmp_path / "file", namespace="alice") == 2
    content = (tmp_path / "file").read_bytes()
    assert b"blue" in content
    assert b"green" not in content
    assert b"bob" not in content
    with pytest.raises(UserError, match="exists already"):
        export(found, tmp_path / "file")
    with pytest.raises(UserError, match="no documents in the namespace 'default'; there are: alice, bob"):
        export(found, tmp_path / "other")


def test_a_damaged_export_is_refused_and_the_library_is_unharmed(found, tmp_path):
    export(found, tmp_path / "file", namespace="*")
    content, digest = (tmp_path / "file").read_bytes(), found.digest()
    for at in (3, 20, 300, len(content) // 2, len(content) - 9):
        (tmp_path / "broken").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        target = create_fake(tmp_path / f"target{at}")
        with pytest.raises(UserError):
            import_file(target.path, tmp_path / "broken")
        assert target.documents == ()
    (tmp_path / "broken").write_bytes(content[:100])
    with pytest.raises(UserError, match="cannot read"):
        import_file(found.path, tmp_path / "broken")
    assert found.digest() == digest


def test_libraries_of_other_models_do_not_mix(found, tmp_path):
    other = create_fake(tmp_path / "other", fingerprint="another")
    with pytest.raises(UserError, match="was made by another model"):
        merge(other, found, namespace="*")


def test_conflicting_documents_are_not_merged(found, tmp_path):
    other = create_fake(tmp_path / "other")
    other.read("A different sky.", document="sky", namespace="alice")
    with pytest.raises(UserError, match="has other documents of the same names: sky"):
        merge(found, other, namespace="*")


def test_the_newest_or_the_most_recalled_documents_are_kept(found, tmp_path):
    copy = open_fake(fork(found, tmp_path / "copy").path)
    for _ in range(3):
        copy.recall("The sky is blue.", k=1, namespace="alice")
    assert resize(copy, 6) is None
    resize(copy, 2, keep="most recalled")
    assert [document.key for document in copy.documents] == [("alice", "sky")]
    certificate = resize(found, 3)
    assert [document.key for document in found.documents] == [("alice", "trees")]
    assert len(certificate["removed"]) == 2
    assert found.verify(certificate)


def test_without_texts_nothing_can_be_read_again(tmp_path):
    library = create_fake(tmp_path / "library", texts=False)
    library.read("The sky is blue.", document="sky")
    assert library.recall("The sky is blue.")[0].text is None
    assert b"blue" not in (library.path / "record.jsonl").read_bytes()
    with pytest.raises(UserError, match="has no text of sky"):
        migrate(library, tmp_path / "new", "minilm")
    library.read("Trees.", document="trees")
    with pytest.raises(UserError, match="keeps no text"):
        library.forget(document="trees", reread=True)


# --- damage, disks and other processes


@pytest.mark.parametrize("name", ["record.jsonl", "library.json", "entries"])
def test_a_flipped_byte_is_one_line(found, name):
    path = found.path / name
    path = sorted(path.iterdir())[0] if path.is_dir() else path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{found.path} is damaged|is not the model") as caught:
        open_fake(found.path).digest()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[]\n", b"\xff\n", b'{"memtx record": 2}\n', b'{"memtx record": 1}\n'])
def test_a_file_that_is_no_record_is_one_line(found, content):
    (found.path / "record.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: record.jsonl: .*(record|format)"):
        open_fake(found.path)


def test_a_record_cannot_name_files_outside_the_library(found):
    record = (found.path / "record.jsonl").read_text()
    lines = record.splitlines()[1:]
    from memtx.library.record import Document, Record

    evil = Document(**{**json.loads(lines[0]), "digest": "../../../etc/passwd"})
    (found.path / "record.jsonl").write_text(Record(9, (evil,)).dumps())
    with pytest.raises(UserError, match="a digest in it is not a sha256"):
        open_fake(found.path)


def test_a_full_disk_leaves_the_library_unchanged(found, monkeypatch):
    digest = found.digest()

    def full(path, content):
        path.with_name(path.name + ".part").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("memtx.library.folder.write_atomic", full)
    with pytest.raises(UserError, match=f"the disk is full: {found.path} is unchanged"):
        found.read("New text.", document="new")
    with pytest.raises(UserError, match="the disk is full"):
        found.forget(document="trees")
    monkeypatch.undo()
    assert found.digest() == digest
    assert not [*found.path.rglob("*.part")]
    assert found.folder.stored() == found.record.files()


def test_a_library_that_cannot_be_written_can_be_recalled(found, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(found.folder._lock, "acquire", refused)
    assert found.recall("The sky is blue.", k=1, namespace="alice")[0].document == "sky"
    with pytest.raises(UserError, match=f"cannot write in {found.path}: Permission denied"):
        found.read("New text.", document="new")


def test_a_folder_that_is_no_library_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is not a library \(it has no library.json\)"):
        Library(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="has other files"):
        create_fake(tmp_path)
    with pytest.raises(UserError, match="is a library already"):
        create_fake(create_fake(tmp_path / "new").path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def _hold(path, started, seconds):
    with open_fake(path).changing():
        started.set()
        time.sleep(seconds)


@pytest.mark.thorough
def test_a_second_writer_waits_for_the_first_or_is_refused(found, monkeypatch):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    holder = context.Process(target=_hold, args=(found.path, started, 3))
    holder.start()
    assert started.wait(60)
    monkeypatch.setattr("memtx.library.folder.WAIT", 0.1)
    with pytest.raises(UserError, match="is in use: another process changes it"):
        found.read("New text.", document="new")
    assert found.recall("The sky is blue.", namespace="alice")  # readers do not wait
    monkeypatch.setattr("memtx.library.folder.WAIT", 60.0)
    assert found.read("New text.", document="new") == 1
    holder.join()


def run(*words: str) -> None:
    cli.main(["memory", *words])


def test_the_command_reads_a_folder_without_files_that_are_not_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("memtx.library.library.KINDS", {"sentences": lambda loaded: FakeSentences()})
    monkeypatch.setattr("memtx.library.library.load", lambda name, **given: None)
    monkeypatch.setattr("memtx.library.library.fingerprint", lambda loaded: "fake")
    create_fake(tmp_path / "library")
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "one.txt").write_text("The sky is blue.")
    (folder / "inner" / "one.txt").write_text("It rains.")
    (folder / "empty.txt").write_text("")
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    monkeypatch.chdir(tmp_path)
    run("read", "--memory=library", "texts", "--namespace=alice")
    said = capsys.readouterr()
    assert "read 2 documents into" in said.out
    assert said.out.endswith("library: 2 entries\n")
    assert said.err.count("left out") == 2
    assert {document.name for document in open_fake(tmp_path / "library").documents} == {"texts/one.txt", "texts/inner/one.txt"}
    run("recall", "--memory=library", "It rains.", "--k=1", "--namespace=alice")
    assert "texts/inner/one.txt (alice) at 0" in capsys.readouterr().out
    run("recall", "--memory=library", "It rains.")
    assert capsys.readouterr().out == "nothing, because the namespace has no documents; there are: alice\n"
    run("forget", "--memory=library", "texts/one.txt")
    (tmp_path / "certificate.json").write_text(capsys.readouterr().out)
    run("verify", "--memory=library", "certificate.json")
    assert capsys.readouterr().out.startswith("true: ")
    run("export", "--memory=library", "file", "--namespace=*")
    run("import", "--memory=other", "file")
    run("diff", "--memory=library", "other")
    assert capsys.readouterr().out.splitlines()[-1] == "the same documents"
    with pytest.raises(SystemExit):
        run("merge", "--memory=new", "library")
    assert "new is not a library yet; memtx memory fork --memory=library new makes it" in capsys.readouterr().err
    name = "a folder with a long name/" * 4 + "two.txt"
    open_fake(tmp_path / "library").read("It snows.", document=name)
    run("show", "--memory=library")
    shown = capsys.readouterr().out
    assert name in shown  # on one line
    assert (
        "use: 1 recalled entry, 50.0% of the entries were never recalled, the most recalled tenth of the entries has" in shown
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a verb"),
        (("recal", "x"), "did you mean recall?"),
        (("recall",), "memtx memory recall takes 1 word (QUERY), not 0"),
        (("export", "a", "b"), "takes 1 word (FILE), not 2"),
        (("read",), "takes at least 1 word (FILE, FOLDER or -), not 0"),
        (("recall", "x"), "--memory is missing"),
        (("recall", "x", "--memory=nowhere"), "is not a library"),
        (("read", "nofile.txt", "--memory=nowhere", "--model=minilm"), "cannot read nofile.txt: No such file"),
        (("resize", "ten", "--memory=nowhere"), "takes a number of entries, not 'ten'"),
        (("verify", "nofile.json", "--memory=nowhere"), "cannot read the certificate nofile.json: No such file"),
    ],
)
def test_a_mistake_in_a_command_is_one_line_and_creates_nothing(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_progress_counts_the_documents_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("memtx.library.move.create", lambda path, model, **_: create_fake(path))
    library, seen = create_fake(tmp_path / "library"), []
    texts = [("a", "One. Two."), ("b", "Three.")]
    library.read_all(texts, namespace="alice", progress=lambda *given: seen.append((*given, len(library.documents))))
    assert seen == [(1, 2, 0), (2, 2, 0)]  # they are saved together
    library.read_all(iter(texts), namespace="bob", progress=lambda *given: seen.append(given))
    assert seen[2:] == [(1, 0), (2, 0)]  # without a length
    migrate(library, tmp_path / "new", "any", lambda *given: seen.append(given))
    assert seen[4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]
