"""Explanations say what was read, and how much each document helped; their page is safe to open."""

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
from memtx.library.attribution import THIS, losses
from memtx.library.explain import NAMES, Read, explain_written, joined, texts_of
from memtx.memory import knn_lm
from memtx.nn.reads import NOWHERE
from memtx.runs.configure import build, configure
from memtx.runs.load import Loaded
from tests import runs

TOKENIZER = Tokenizer("bytes", 264)
TEXT = TOKENIZER.encode("to be or not to be é")
EVIL = "</script><script>alert(1)</script>\x00\u202e"
TEXTS = {0: "a rose is a rose", 1: "to be, or not to be", 7: EVIL}


def loaded_with(stacks, memory, **model) -> Loaded:
    values = {"stacks": stacks, "width": 16, "num_heads": 2, "ff_dim": 32, **model}
    config = configure({"model": values, "memory": memory})
    lm = build(config.model, vocab_size=264)
    return Loaded(lm, lm.init(jax.random.key(3)), lm.init_state(1), TOKENIZER, config, 0)


@pytest.fixture(scope="module")
def loaded():
    memory = {"window": {"window": 40}, "knn_lm": {"memory": 0, "datastore": 80, "neighbours": 4}}
    return loaded_with([[["window"], 2]], memory, head="knn_lm")


@pytest.fixture(scope="module")
def store(loaded):
    return knn_lm.build(loaded.lm, loaded.params, [(n, TOKENIZER.frame(text)[0]) for n, text in TEXTS.items()])


@pytest.fixture(scope="module")
def options(loaded, store):
    def state(store):
        return knn_lm.attach(loaded.lm.init_state(1), store)

    documents = {n: memtx.Document(f"text {n}{text}"[:60], TOKENIZER.frame(text)[0]) for n, text in TEXTS.items()}
    return {"state": state(store), "documents": documents, "without": lambda n: state(knn_lm.forget(store, n))}


@pytest.fixture(scope="module")
def explanation(loaded, options):
    return memtx.explain(loaded, TEXT, **options)


def source(explanation, name: str) -> int:
    return next(s for s, text in enumerate(explanation.sources) if text.name.startswith(name))


# --- what is read -----------------------------------------------------------------------------------------------------------


def test_the_weights_are_those_that_are_collected_by_hand(loaded, options, explanation):
    ids, size = TEXT, 32
    token = np.pad(ids, (0, size - len(ids)))[None]
    seg = segment(np.arange(size)[None], [len(ids)], document_B=[THIS])
    run = jax.jit(collect(loaded.lm, also=("attribution",)))
    _, aux = run(loaded.params, token, options["state"], seg)
    near, far = jax.device_get(aux["attribution/reads"])
    number = {s: n for n, d in options["documents"].items() for s, t in enumerate(explanation.sources) if t.name == d.name}
    expected = [set() for _ in ids[1:]]
    for t, row in enumerate(expected):
        for g, n, r in np.argwhere(near.weight_BTNR[:, 0, t] > 0):
            row.add((g, n, THIS, t + int(near.position_BTNR[g, 0, t, n, r]), float(near.weight_BTNR[g, 0, t, n, r])))
        for (r,) in np.argwhere(far.weight_BTNR[0, t, 0] > 0):
            labels = (far.document_BTNR, far.position_BTNR)
            row.add((-1, 0, *(int(a[0, t, 0, r]) for a in labels), float(far.weight_BTNR[0, t, 0, r])))
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


def test_entries_have_the_text_of_their_document(explanation):
    to_be = source(explanation, "text 1")
    after = explanation.reads[3]  # "t", "o", " ", "b" are read; the next token is "e"
    best = max((read for read in after if read.layer < 0), key=lambda read: read.weight)
    assert {explanation.text(read) for read in after if read.source == to_be} <= {*TEXTS[1]}
    assert explanation.text(best) == TEXTS[int(explanation.sources[best.source].name[5])][best.position - 1]  # after <bos>
    assert explanation.text(Read(0, 0, to_be, 999, 1, 0.5)) == ""


def test_only_the_largest_weights_are_kept(loaded, options, explanation):
    few = memtx.explain(loaded, TEXT, **options | {"without": None}, reads=2, first=9)
    assert few.first == 9
    assert len(few.reads) == len(explanation.tokens) - 9
    for row, whole, covered in zip(few.reads, explanation.reads[8:], few.covered, strict=True):
        for layer in (0, 1, -1):
            of = [read.weight for read in whole if read.layer == layer]
            assert [read.weight for read in row if read.layer == layer] == of[:2]
        assert covered < 1
    assert few.effect(1) is None


# --- without a document -----------------------------------------------------------------------------------------------------


def test_what_a_document_saves_is_the_difference_of_two_evaluations(loaded, options, explanation):
    for n in TEXTS:
        s = source(explanation, f"text {n}")
        alone = memtx.explain(loaded, TEXT, state=options["without"](n), documents=options["documents"])
        assert explanation.sources[s].bits_without == alone.bits  # every bit
        assert explanation.effect(s) == pytest.approx(sum(alone.bits) - sum(explanation.bits), abs=1e-9)
    assert explanation.effect(source(explanation, "text 1")) > explanation.effect(source(explanation, "text 0"))


def test_losses_are_those_of_the_model(loaded, options, explanation):
    ids = TEXT
    logits, _ = loaded.lm(loaded.params, ids[None], options["state"])
    nll = token_nll(logits[:, :-1], jnp.asarray(ids[None, 1:]))[0]
    np.testing.assert_allclose(explanation.bits, nll[0] / np.log(2), rtol=1e-4)
    long = np.tile(ids, 8)  # several calls
    cut = losses(loaded.lm, loaded.params, long, options["state"])
    logits, _ = loaded.lm(loaded.params, long[None], options["state"])
    np.testing.assert_allclose(cut, token_nll(logits[:, :-1], jnp.asarray(long[None, 1:]))[0][0] / np.log(2), atol=1e-3)


def test_the_most_read_documents_are_left_out(loaded, options):
    left = []
    memtx.explain(loaded, TEXT, **options | {"without": lambda n: left.append(n) or options["without"](n)}, leave_out=1)
    assert left == [1]


# --- streams ----------------------------------------------------------------------------------------------------------------


def test_documents_that_a_stream_has_read_are_found_by_their_positions():
    loaded = loaded_with([[["window"], 1]], {"window": {"window": 12}})
    first, second = TOKENIZER.encode("abcdef"), TOKENIZER.encode("ghij")
    _, state = loaded.lm(loaded.params, np.concatenate([first, second])[None], loaded.lm.init_state(1))
    documents = {5: memtx.Document("one", first, 0), 6: memtx.Document("two", second, len(first))}
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
    found = memtx.explain(loaded, TEXT[:2], **options | {"without": None})
    stored = {s: sum(len(tokens) for _, tokens in text.excerpts) for s, text in enumerate(found.sources)}
    assert all(stored[s] <= 12 for s in stored if s)
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
    assert data["sources"][source(explanation, "text 7")]["name"].startswith(f"text 7{EVIL}"[:60])
    assert data["reads"][5][0] == pytest.approx([*explanation.reads[5][0]], rel=1e-3)
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & {*attrs}]  # it loads nothing
    assert explanation.write(tmp_path / "page.html").read_text(encoding="utf-8") == text


def test_an_explanation_is_json(explanation):
    again = json.loads(json.dumps(explanation.to_json()))
    assert again["reads"][0] == [[*read] for read in explanation.reads[0]]


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


def test_generate_explains_the_tokens_that_it_writes(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    cli.main(["generate", f"--workdir={run}", "--prompt=The ", "--max_tokens=5", "--temperature=0", f"--explain={page}"])
    shown = capsys.readouterr()
    assert shown.err.endswith(f"wrote {page}\n")
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


def test_a_source_is_explained():
    memory = {"full": {"capacity": 16}, "cross": {"capacity": 8}, "bidirectional": {}}
    loaded = loaded_with([[["full/cross/mlp"], 1]], memory, encoder=[[["bidirectional"], 1]])
    ids = TOKENIZER.encode("abcdef")
    found = explain_written(loaded, ids[:2], ids[2:], source="xyz")
    [read] = [s for s, text in enumerate(found.sources) if text.name == "the encoder's source"]
    assert {found.text(entry) for row in found.reads for entry in row if entry.source == read} == {"<bos>", "x", "y", "z"}
    assert found.effect(read) != 0
    assert NOWHERE in NAMES
