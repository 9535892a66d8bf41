"""Forgetting and isolation with real models: the logits and the digest are those of a library that never read the document."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memtx
from memtx import library
from memtx.config import Config, Model
from memtx.data import tokenizers
from memtx.errors import UserError
from memtx.generate.writer import padded, step
from memtx.memory import MEMORIES
from memtx.memory.bank import Bank
from memtx.memory.knn_lm import KNNLM
from memtx.memory.memorizing import Memorizing
from memtx.models.lm import build
from memtx.runs.load import Loaded

TEXTS = {"a": "The tower was built in 1889.", "b": "Alice likes green apples.", "c": "Bob says so, too. He is sure."}
SIZES = {"width": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "ff_dim": 16}
ENTRIES = ("memorizing", "landmark", "knn_lm")
STATES = ("memorizing", "xl", "gated_deltanet", "lstm")
CONFIGS = {  # of which a text is one chunk, so that little is compiled
    "memorizing": Memorizing.Config(window=3, segment=32, memory=32, neighbours=3),
    "knn_lm": KNNLM.Config(memory=32, neighbours=4, temperature=8.0, chunk=32),
}
WINDOW = {"stacks": ((("window",), 1),)}
STEP = jax.jit(step, static_argnums=0)
BYTES = tokenizers.byte_tokenizer()


@pytest.fixture(scope="module")
def models():
    """Tiny models by the name of their memory, built once."""
    built = {}

    def get(name: str) -> Loaded:
        if name not in built:
            site = MEMORIES[name].site
            place = {"stacks": ((("window", name), 1),)} if site in ("attention", "residual") else {site: name, **WINDOW}
            lm = build(
                Model(memory={name: CONFIGS.get(name, MEMORIES[name].tiny[0])}, **place, **SIZES), vocab_size=BYTES.vocab_size
            )
            params = lm.init(jax.random.key(0))
            rng = np.random.default_rng(1)
            params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)
            built[name] = Loaded(lm, params, lm.init_state(1), BYTES, Config(), 0)
        return built[name]

    return get


@pytest.fixture
def make(tmp_path, models):
    def make(name: str, kind: str, texts: dict[str, str], space: str = "default") -> library.Library:
        found = library.create(tmp_path / f"{name}{len([*tmp_path.iterdir()])}", "tiny", kind=kind, loaded=models(name))
        for document, text in texts.items():
            found.read(text, document=document, namespace=space)
        return found

    return make


def logits(found: library.Library, **which) -> np.ndarray:
    model = found.model(**which)
    token_BT, length_B = padded([BYTES.encode("Was it built")], 32)
    return np.asarray(STEP(model.lm, model.params, token_BT, length_B, model.state)[0])[:, : length_B[0]]


def is_bank(node) -> bool:
    return isinstance(node, Bank)


EVERY = [("entries", name) for name in ENTRIES] + [("state", name) for name in STATES]


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_forgotten_document_was_never_read_bit_for_bit(make, kind, name):
    found, never = make(name, kind, TEXTS), make(name, kind, {key: text for key, text in TEXTS.items() if key != "b"})
    before = logits(found)
    certificate = found.forget(document="b", reread=True)
    assert certificate["method"] == {"entries": "erase", "state": "replay"}[kind]
    assert found.verify(certificate)
    assert found.digest() == never.digest()
    np.testing.assert_array_equal(logits(found), logits(never))
    assert np.abs(before - logits(found)).max() > 1e-6  # control: the document had an influence


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_another_namespace_has_no_influence_on_logits_or_recall(make, kind, name):
    mine, shared = make(name, kind, TEXTS, "alice"), make(name, kind, TEXTS, "alice")
    shared.read("The tower was built in 1700, I say.", document="a", namespace="bob")
    np.testing.assert_array_equal(logits(mine, namespace="alice"), logits(shared, namespace="alice"))
    if name in ENTRIES:
        query = {"query": "Was it built", "k": 9, "namespace": "alice"}
        assert shared.recall(**query) == mine.recall(**query)
    assert np.abs(logits(shared, namespace="bob") - logits(mine, namespace="alice")).max() > 1e-6  # control


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name, cls in MEMORIES.items() if cls.causal and not cls.encoded])
def test_the_state_of_every_memory_can_be_saved_forked_continued_and_forgotten(make, tmp_path, models, name):
    found, never = make(name, "state", {"a": TEXTS["a"]}), make(name, "state", {"b": TEXTS["b"]})
    copy = library.Library(library.fork(found, tmp_path / "copy").path, models(name))
    np.testing.assert_array_equal(logits(found), logits(copy))
    copy.read(TEXTS["b"], document="b")
    assert np.abs(logits(found) - logits(copy)).max() > 0  # the copy goes on, and the other stays
    copy.forget(document="a", reread=True)
    assert copy.digest() == never.digest()
    np.testing.assert_array_equal(logits(copy), logits(never))


def test_a_masked_document_has_no_entries_and_the_certificate_says_that_traces_may_remain(make):
    found, never = make("memorizing", "state", TEXTS), make("memorizing", "state", {"a": TEXTS["a"], "c": TEXTS["c"]})
    certificate = found.forget(document="b", method="mask")
    assert "traces may remain" in certificate["meaning"]
    bank = next(
        leaf
        for leaf in jax.tree.leaves(found.model().state, is_leaf=lambda s: hasattr(s, "entries"))
        if hasattr(leaf, "entries")
    )
    assert 2 not in np.unique(bank.entries.document)
    assert np.abs(logits(found) - logits(never)).max() > 0  # so it is not the exact method


@pytest.mark.thorough
def test_a_memory_without_entries_cannot_be_masked_or_recalled(make):
    found = make("lstm", "state", TEXTS)
    with pytest.raises(UserError, match="use method='replay'"):
        found.forget(document="a", method="mask")
    with pytest.raises(UserError, match="no memory of this model has entries"):
        found.recall("tower")


@pytest.mark.thorough
def test_a_model_without_a_bank_gets_the_pairs_of_a_nearest_neighbour_head(make):
    found = make("xl", "entries", TEXTS)
    assert [document.entries for document in found.documents] == [
        len(text) for text in TEXTS.values()
    ]  # one per token after bos
    [best] = found.recall("The tower was b", k=1)
    assert best.document == "a"
    assert best.text == TEXTS["a"][slice(*best.span)]
    with pytest.raises(UserError, match="around is for a library of sentences"):
        found.recall("The tower was b", around=1)


def test_a_state_of_a_library_generates(make):
    model = make("knn_lm", "entries", TEXTS).model()
    done = memtx.complete(model.lm, model.params, BYTES, ["Was it"], state=model.state, max_tokens=4, sampling=memtx.GREEDY)
    assert len(done.texts[0].encode("utf-8", "replace")) >= 1


def test_recalled_entries_lie_where_they_say(make):
    texts = {"a": "abcdefghijklmnop", "b": "0123456789"}
    found = make("knn_lm", "entries", texts)
    ids = {document.name: document.id for document in found.documents}
    entries = found.recall("abcdef", k=99)
    assert {entry.document for entry in entries} == {*texts}  # a model that is not trained may prefer either
    for entry in entries:
        assert entry.text == texts[entry.document][slice(*entry.span)]
        assert entry.entry == f"{ids[entry.document]}:{entry.position}"


@pytest.mark.thorough
@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*TEXTS]), st.sampled_from(["read", "forget"])), min_size=1, max_size=8))
@pytest.mark.parametrize(("kind", "name"), [("entries", "memorizing"), ("state", "gated_deltanet")])
def test_random_histories_end_in_the_library_of_what_is_left(tmp_path_factory, models, kind, name, steps):
    folder = tmp_path_factory.mktemp("histories")
    found = library.create(folder / "found", "tiny", kind=kind, loaded=models(name))
    left = {}
    for document, verb in steps:
        if verb == "read" and document not in left:
            found.read(TEXTS[document], document=document)
            left[document] = TEXTS[document]
        elif verb == "forget" and document in left:
            found.forget(document=document)
            del left[document]
    straight = library.create(folder / "straight", "tiny", kind=kind, loaded=models(name))
    for document, text in left.items():
        straight.read(text, document=document)
    assert found.digest() == straight.digest()
    np.testing.assert_array_equal(logits(found), logits(straight))


def test_another_model_is_refused(make, models, tmp_path, monkeypatch):
    found = make("memorizing", "entries", TEXTS)
    other = dataclasses.replace(
        models("memorizing"), params=jax.tree.map(lambda leaf: leaf * 1.001, models("memorizing").params)
    )
    monkeypatch.setattr("memtx.library.library.load", lambda name, **settings: other)
    with pytest.raises(UserError, match="is not the model of the library"):
        library.open(found.path).recall("tower")
