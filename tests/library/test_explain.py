"""Explanations say what was read, and how much each document helped; their page is safe to open."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memtx
from memtx import cli
from memtx.core import collect, segment
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.evaluation.losses import token_nll
from memtx.library.attribution import LEAST_WEIGHT, THIS, losses
from memtx.library.explain import NAMES, Gate, Read, Text, explain_with_source, joined, texts_of
from memtx.runs.configure import build, configure
from memtx.runs.load import Loaded
from tests import runs

TOKENIZER = Tokenizer("bytes", 264)
TEXT = TOKENIZER.encode("to be or not to be é")
EVIL = "</script><script>alert(1)</script>\x00\u202e"
TEXTS = {"rose": "a rose is a rose", "be": "to be, or not to be", "evil": EVIL}
EVIL_NAME = "</script><b>evil</b>"


def loaded_with(stacks, memory, **model) -> Loaded:
    values = {"stacks": stacks, "width": 16, "num_heads": 2, "ff_dim": 32, **model}
    config = configure({"model": values, "memory": memory})
    lm = build(config.model, vocab_size=264)
    return Loaded(lm, lm.init(jax.random.key(3)), lm.init_state(1), TOKENIZER, config, 0)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library of entries of kNN-LM with three documents, one of them hostile."""
    loaded = loaded_with([[["window"], 2]], {"window": {"window": 40}})
    library = memtx.library.create(tmp_path_factory.mktemp("library") / "library", "m", loaded=loaded)
    for name, text in TEXTS.items():
        library.read(text, document=EVIL_NAME if name == "evil" else name)
    library.read("secret", document="other", namespace="bob")
    return library


@pytest.fixture(scope="module")
def loaded(library):
    return library.model()


@pytest.fixture(scope="module")
def options(library, loaded):
    labelled = library.kind.labelled(library.record.visible("default"))
    documents = {n: Text(d.name, TOKENIZER.frame(d.text)[0]) for n, d in labelled.items()}
    return {"state": loaded.state, "documents": documents}


@pytest.fixture(scope="module")
def explanation(library):
    return library.explain(TEXT, reads=100)  # all of them


def source(explanation, name: str) -> int:
    return [text.name for text in explanation.sources].index(name)


# --- what is read -----------------------------------------------------------------------------------------------------------


def test_the_weights_are_those_that_are_collected_by_hand(loaded, options, explanation):
    ids, size = TEXT, 32
    token = np.pad(ids, (0, size - len(ids)))[None]
    seg = segment(np.arange(size)[None], [len(ids)], document_B=[THIS])
    run = jax.jit(collect(loaded.lm, also=("attribution", "attention")))
    _, aux = jax.device_get(run(loaded.params, token, options["state"], seg))
    [near], banks = aux["attention/reads"], aux["attribution/reads"]  # the pairs of the stream, and those of the library
    number = {s: n for n, d in options["documents"].items() for s, t in enumerate(explanation.sources) if t.name == d.name}
    expected = [set() for _ in ids[1:]]
    for t, row in enumerate(expected):
        for g, n, r in np.argwhere(near.weight_BTNR[:, 0, t] >= LEAST_WEIGHT):
            row.add((g, n, THIS, t + int(near.position_BTNR[g, 0, t, n, r]), float(near.weight_BTNR[g, 0, t, n, r])))
        for bank in banks:
            for (r,) in np.argwhere(bank.weight_BTNR[0, t, 0] >= LEAST_WEIGHT):
                labels = (bank.document_BTNR, bank.position_BTNR)
                row.add((-1, 0, *(int(a[0, t, 0, r]) for a in labels), float(bank.weight_BTNR[0, t, 0, r])))
    found = [
        {(read.layer, read.head, number.get(read.source, THIS), read.position, read.weight) for read in row}
        for row in explanation.reads
    ]
    assert found == expected


def test_the_whole_weight_is_shared_among_the_texts(explanation):
    np.testing.assert_allclose(np.sum([text.share for text in explanation.sources], 0), 1, atol=1e-6)
    np.testing.assert_allclose(explanation.covered, 1, atol=1e-6)
    assert explanation.sources[0].name == NAMES[THIS]
    assert [gate.layer for gate in explanation.gates] == [-1]
    np.testing.assert_allclose(explanation.gates[0].share, 0.25)
    assert "other" not in [text.name for text in explanation.sources]  # the namespace of somebody else


def test_entries_have_the_text_of_their_document(explanation):
    to_be = source(explanation, "be")
    read_of_it = [read for row in explanation.reads for read in row if read.source == to_be]
    assert read_of_it
    assert all(explanation.text(read) == TEXTS["be"][read.position - 1] for read in read_of_it)  # after <bos>
    assert explanation.text(Read(0, 0, to_be, 999, 1, 0.5)) == ""


def test_only_the_largest_weights_are_kept(loaded, options, explanation):
    few = memtx.explain(loaded, TEXT, **options, reads=2, first=9)
    assert few.first == 9
    assert len(few.reads) == len(explanation.tokens) - 9
    for row, whole, covered in zip(few.reads, explanation.reads[8:], few.covered, strict=True):
        for layer in (0, 1, -1):
            of = [read.weight for read in whole if read.layer == layer]
            assert [read.weight for read in row if read.layer == layer] == of[:2]
        assert covered < 1
    assert few.effect(1) is None


# --- without a document -----------------------------------------------------------------------------------------------------


def test_what_a_document_saves_is_the_difference_of_two_evaluations(library, explanation):
    for name in ("rose", "be"):
        s = source(explanation, name)
        alone = library.model(without=[d.id for d in library.documents if d.name == name])
        without = losses(alone.lm, alone.params, TEXT, alone.state).tolist()
        assert explanation.sources[s].bits_without == without  # every bit
        assert explanation.effect(s) == pytest.approx(sum(without) - sum(explanation.bits), abs=1e-9)
    assert explanation.effect(source(explanation, "be")) > explanation.effect(source(explanation, "rose"))


@pytest.mark.thorough
def test_losses_are_those_of_the_model_in_several_calls(loaded):
    ids = np.tile(TEXT, 7)
    logits, _ = jax.jit(loaded.lm.__call__)(loaded.params, ids[None], loaded.state)
    nll = token_nll(logits[:, :-1], jnp.asarray(ids[None, 1:]))[0]
    np.testing.assert_allclose(losses(loaded.lm, loaded.params, ids, loaded.state), nll[0] / np.log(2), atol=1e-3)


def test_the_most_read_documents_are_left_out(library):
    seen = []
    found = library.explain(TEXT, leave_out=1, progress=lambda *given: seen.append(given))
    assert [text.name for text in found.sources if text.bits_without] == ["be"]
    assert seen == [(0, 1), (1, 1)]


# --- streams ----------------------------------------------------------------------------------------------------------------


def test_documents_that_a_stream_has_read_are_found_by_their_positions():
    loaded = loaded_with([[["window"], 1]], {"window": {"window": 12}})
    first, second = TOKENIZER.encode("abcdef"), TOKENIZER.encode("ghij")
    _, state = jax.jit(loaded.lm.__call__)(loaded.params, np.concatenate([first, second])[None], loaded.lm.init_state(1))
    documents = {5: Text("one", first, 0), 6: Text("two", second, len(first))}
    found = memtx.explain(loaded, "klm", state=state, documents=documents)
    for row, now in zip(found.reads, "kl", strict=True):
        by_name = {found.sources[s].name: set() for s in range(3)}
        for read in row:
            by_name[found.sources[read.source].name].add(found.text(read))
        seen = "abcdefghijklm"[: "abcdefghijklm".index(now) + 1][-12:]
        assert by_name == {name: {*seen} & {*text} for name, text in (("one", "abcdef"), ("two", "ghij"), ("this text", "klm"))}
    unknown = memtx.explain(loaded, "klm", state=state)
    assert [text.name for text in unknown.sources] == ["this text", "earlier text"]
    assert unknown.text(next(read for read in unknown.reads[0] if read.source == 1)) == ""


@pytest.mark.thorough
def test_a_library_of_states_reads_the_other_documents_again(tmp_path):
    loaded = loaded_with([[["window+memorizing"], 1]], {"window": {"window": 8}, "memorizing": {"window": 4, "segment": 4}})
    library = memtx.library.create(tmp_path / "library", "m", kind="state", loaded=loaded)
    for name in ("be", "rose"):
        library.read(TEXTS[name], document=name)
    found = library.explain("to be")
    names = {text.name: s for s, text in enumerate(found.sources)}
    assert {*names} == {"this text", "be", "rose"}
    for name in ("be", "rose"):
        read = [read for row in found.reads for read in row if read.source == names[name]]
        framed = ["<bos>", *TEXTS[name]]
        assert read
        assert all(found.text(entry) == framed[entry.position] for entry in read)
    assert found.effect(names["be"]) != 0
    other = memtx.library.create(tmp_path / "other", "m", kind="state", loaded=loaded)
    other.read(TEXTS["be"], document="be")
    alone = other.model()
    ids = TOKENIZER.encode("to be")
    assert found.sources[names["rose"]].bits_without == losses(alone.lm, alone.params, ids, alone.state).tolist()


def test_a_memory_without_entries_has_an_explanation_too():
    loaded = loaded_with([[["lstm"], 1]], {"lstm": {}})
    found = memtx.explain(loaded, "abc")
    assert found.tokens == ["<bos>", "a", "b", "c"]
    assert found.reads == [[], [], []]
    assert found.covered == [0, 0, 0]
    assert "No layer of this model" in found.html()


def test_long_documents_have_excerpts_around_reads(monkeypatch, loaded, options):
    monkeypatch.setattr("memtx.library.explain.WHOLE", 10)
    monkeypatch.setattr("memtx.library.explain.AROUND", 1)
    found = memtx.explain(loaded, TEXT[:2], **options, reads=1)
    stored = {s: sum(len(tokens) for _, tokens in text.excerpts) for s, text in enumerate(found.sources)}
    assert all(stored[s] <= 3 for s in stored if s)
    assert all(found.text(read) for row in found.reads for read in row if read.source)


def test_ranges_are_joined():
    assert joined([(5, 8), (0, 2), (2, 3), (7, 9), (4, 4)]) == [(0, 3), (5, 9)]


def test_characters_of_several_tokens_and_specials():
    assert texts_of(TOKENIZER, [TOKENIZER.bos, *"é".encode(), 260, 0xC3]) == ["<bos>", "", "é", "<260>", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("a", {"state": None}, "there is no token"),
        ("abc", {"first": 0}, "first=0"),
        ("abc", {"first": 3}, "the text has 3"),
    ],
)
def test_mistakes_are_named(loaded, options, text, changes, message):
    given = {"state": options["state"]} | changes
    with pytest.raises(UserError, match=message):
        memtx.explain(loaded, TOKENIZER.encode(text), **given)
    with pytest.raises(UserError, match="has 2 streams"):
        memtx.explain(loaded, "abc", state=loaded.lm.init_state(2))


# --- the page ---------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page, and the text of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


def test_the_page_has_the_data_and_nothing_else_of_a_document(explanation, tmp_path):
    page = Page(text := explanation.html())
    assert len(page.scripts) == 2
    assert "alert" not in re.sub(r"<script type.*?</script>", "", text, flags=re.DOTALL)
    data = json.loads(page.scripts[0])
    assert data["tokens"] == explanation.tokens
    assert data["sources"][source(explanation, EVIL_NAME)]["name"] == EVIL_NAME
    assert "".join(data["sources"][source(explanation, EVIL_NAME)]["excerpts"][0][1]) == f"<bos>{EVIL}"
    assert data["reads"][5][0] == pytest.approx([*explanation.reads[5][0]], rel=1e-3)
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & {*attrs}]  # it loads nothing
    assert explanation.write(tmp_path / "page.html").read_text(encoding="utf-8") == text


def test_an_explanation_is_json(explanation):
    again = json.loads(json.dumps(explanation.to_json()))
    assert again["reads"][0] == [[*read] for read in explanation.reads[0]]


def test_a_page_says_that_closed_gates_let_nothing_through(explanation):
    shut = [Gate(3, "gate", [[0.0, 0.0]] * len(explanation.bits))]
    assert "All gates are 0" in dataclasses.replace(explanation, gates=shut).html()
    for other in (explanation, dataclasses.replace(explanation, gates=[])):
        assert "All gates are 0" not in other.html()


def test_a_large_page_is_small_enough(explanation):
    heads = [Read(layer, n % 8, 0, n, 1, 0.123456789) for layer in range(4) for n in range(32)]
    large = memtx.Explanation("m", ["token"] * 300, 0, [1.0] * 300, [heads] * 300, [0.9] * 300, explanation.sources, [])
    assert len(large.html()) < 2e6


# --- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    memtx.train(runs.tiny(root, train={"steps": 2}), workdir)
    return workdir


@pytest.mark.thorough
def test_generate_explains_the_tokens_that_it_writes(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    cli.main(["generate", f"--workdir={run}", "--prompt=The ", "--max_tokens=5", "--temperature=0", f"--explain={page}"])
    shown = capsys.readouterr()
    assert shown.err.endswith(f"wrote {page}\n")
    assert f"<title>Explanation, {run.parent.name}/run</title>" in page.read_text(encoding="utf-8")
    data = json.loads(Page(page.read_text(encoding="utf-8")).scripts[0])
    assert data["first"] == 5
    assert len(data["reads"]) == 5
    assert {read[2] for row in data["reads"] for read in row} == {0}
    assert shown.out.startswith("The ")
    cli.main(["generate", f"--workdir={run}", "--prompt=The ", "--max_tokens=5", "--temperature=0"])
    assert capsys.readouterr().out == shown.out
    with pytest.raises(SystemExit):
        cli.main(["generate", f"--workdir={run}", "--max_tokens=1", f"--explain={tmp_path}/none/page.html"])
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_library_writes_and_explains(run, tmp_path, capsys):
    library, page = memtx.library.create(tmp_path / "library", run), tmp_path / "page.html"
    library.read("The rose is a rose.", document="rose")
    command = ["generate", f"--memory={library.path}", "--prompt=The ", "--max_tokens=3", f"--explain={page}"]
    cli.main(command)
    data = json.loads(Page(page.read_text(encoding="utf-8")).scripts[0])
    assert [text["name"] for text in data["sources"]] == ["this text", "rose"]
    assert len(data["sources"][1]["bits_without"]) == 3
    for more, message in (
        ["--workdir=x", "only one of"],
        ["--namespace=bob", "no documents in the namespace bob; there are: default"],
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, more])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["generate", f"--workdir={run}", "--namespace=bob"])
    assert "--namespace is for --memory" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_source_is_explained():
    memory = {"full": {"capacity": 16}, "cross": {"capacity": 8}, "bidirectional": {}}
    loaded = loaded_with([[["full/cross/mlp"], 1]], memory, encoder=[[["bidirectional"], 1]])
    ids = TOKENIZER.encode("abcdef")
    found = explain_with_source(loaded, ids, "xyz", first=2)
    [read] = [s for s, text in enumerate(found.sources) if text.name == "the encoder's source"]
    assert {found.text(entry) for row in found.reads for entry in row if entry.source == read} == {"<bos>", "x", "y", "z"}
    assert found.effect(read) != 0
