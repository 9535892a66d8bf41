"""Batches, stop texts, ends, beams and unstacked layers: each row equals the same row alone."""

import functools
import itertools
from functools import partial

import jax
import numpy as np
import pytest

import memtx
from memtx.data.tokenizers import Tokenizer, Words
from memtx.errors import UserError
from memtx.generate import GREEDY, Sampling, complete, generate, unstack, writer
from memtx.runs.configure import build, configure

TOKENIZER = Tokenizer("bytes", 264)
PROMPTS = ["a ship", "the lighthouse keeper wrote", "x"]
KINDS = {
    "window": {"window": 8},
    "full": {"capacity": 64},
    "gated_deltanet": {},
    "rmt": {"segment": 8, "tokens": 2},
    "memorizing": {"window": 8, "capacity": 16},
}


@functools.cache
def model(kind, size, groups):
    model = {"stacks": [[[kind], groups]], "width": 16, "num_heads": 2, "ff_dim": 32}
    if kind == "rmt":
        model |= {"stacks": [[["window"], groups]], "body": "rmt"}
    from memtx.memory import MEMORIES

    known = {k: v for k, v in KINDS.get(kind, {}).items() if k in MEMORIES[kind].Config.__dataclass_fields__}
    return build(configure({"model": model, "memory": {kind: known}}), vocab_size=size)


@functools.cache
def make(kind, size=264, groups=2, key=3):
    """Tests share models, which compile once."""
    lm = model(kind, size, groups)
    return lm, jax.tree.map(lambda p: 3 * p, lm.init(jax.random.key(key)))  # far from uniform


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.thorough] if kind != "window" else []) for kind in KINDS]
)
def test_a_row_of_a_batch_is_what_it_would_be_alone(kind):
    lm, params = make(kind)
    options = {"max_tokens": 6, "sampling": Sampling(temperature=1.0), "chunk": 8}
    together = complete(lm, params, TOKENIZER, PROMPTS, seed=5, **options)
    alone = [complete(lm, params, TOKENIZER, [text], seed=5 + i, **options) for i, text in enumerate(PROMPTS)]
    assert together.texts == [one.texts[0] for one in alone]
    assert together.state.position_B.tolist() == [int(one.state.position_B[0]) for one in alone]
    assert together.texts != complete(lm, params, TOKENIZER, PROMPTS, seed=9, **options).texts
    more = complete(lm, params, TOKENIZER, [" and"] * 3, state=together.state, max_tokens=4, sampling=GREEDY).texts
    later = [
        complete(lm, params, TOKENIZER, [" and"], state=one.state, max_tokens=4, sampling=GREEDY).texts[0] for one in alone
    ]
    assert more == later


def test_a_handed_state_is_not_taken_away():
    lm, params = make("window")
    state = complete(lm, params, TOKENIZER, ["abc"], max_tokens=2).state
    again = [complete(lm, params, TOKENIZER, ["d"], state=state, max_tokens=3, sampling=GREEDY).texts for _ in range(2)]
    assert again[0] == again[1]


def test_a_stop_text_ends_its_row_only_and_is_not_given_back():
    lm, params = make("window", key=4)
    whole = complete(lm, params, TOKENIZER, PROMPTS[:2], max_tokens=12, sampling=GREEDY)
    stop = whole.texts[0][2:4]
    assert len(stop) == 2
    cut = complete(lm, params, TOKENIZER, PROMPTS[:2], max_tokens=12, sampling=GREEDY, stop=[stop, "never there"])
    assert cut.texts[0] == whole.texts[0][: whole.texts[0].index(stop)]
    expected = whole.texts[1].partition(stop)[0]
    assert cut.texts[1] == expected
    assert int(cut.state.position_B[0]) < int(whole.state.position_B[0])


def test_streaming_holds_back_what_may_begin_a_stop_text():
    lm, params = make("window", key=4)
    whole = complete(lm, params, TOKENIZER, ["a ship"], max_tokens=12, sampling=GREEDY).texts[0]
    stop = whole[3:6]
    pieces = list(generate(lm, params, TOKENIZER, "a ship", max_tokens=12, sampling=GREEDY, stop=[stop]))
    assert "".join(pieces) == whole.partition(stop)[0]
    near = list(generate(lm, params, TOKENIZER, "a ship", max_tokens=12, sampling=GREEDY, stop=[whole[3:5] + "\x00"]))
    assert "".join(near) == whole


def test_an_end_token_ends_its_row_and_is_read():
    lm, params = make("window", size=8)
    tokenizer = Words("w", list("abcdefgh"))
    whole = complete(lm, params, tokenizer, ["a b", "c"], max_tokens=9, sampling=GREEDY)
    drawn = whole.texts[0].split()
    tokenizer.bos = tokenizer.ids[drawn[2]]  # now a token between documents
    begun = jax.jit(partial(lm.init_state, 2))()
    cut = complete(lm, params, tokenizer, ["a b", "c"], max_tokens=9, sampling=GREEDY, state=begun)
    first = drawn.index(drawn[2])
    assert cut.texts[0].split() == drawn[:first]
    assert int(cut.state.position_B[0]) == 2 + first + 1


def likeliest(lm, params, ids, end, size, steps, length_penalty):
    """By trying all texts: the tokens of the best score."""
    tokens_AN = np.asarray([*itertools.product(range(size), repeat=steps)])
    token_AT = np.concatenate([np.tile(ids, (len(tokens_AN), 1)), tokens_AN], 1)
    logits = jax.jit(lm.__call__)(params, token_AT, lm.init_state(len(token_AT)))[0]
    logp = np.asarray(jax.nn.log_softmax(logits))[:, len(ids) - 1 : -1]
    logp_AN = np.take_along_axis(logp, tokens_AN[..., None], 2)[..., 0]
    best = (-np.inf, [])
    for tokens, row in zip(tokens_AN.tolist(), logp_AN, strict=True):
        length = tokens.index(end) + 1 if end in tokens else steps
        best = max(best, (row[:length].sum() / length**length_penalty, tokens[:length]))
    return best[1]


@pytest.mark.thorough
@pytest.mark.parametrize("length_penalty", [pytest.param(0.0, marks=pytest.mark.thorough), 2.0])
def test_with_enough_beams_the_search_finds_the_likeliest_of_all_texts(length_penalty):
    size, steps = 4, 3
    lm, params = make("full", size=size, groups=1)
    tokenizer = Words("w", list("abcd"))
    tokenizer.bos = 3
    begun = lm.init_state(2)
    options = {"max_tokens": steps, "sampling": GREEDY, "length_penalty": length_penalty, "state": begun}
    found = complete(lm, params, tokenizer, ["a b", "c"], beams=64, **options)
    for text, ids in zip(found.texts, ([0, 1], [2]), strict=True):
        expected = likeliest(lm, params, ids, 3, size, steps, length_penalty)
        assert [*tokenizer.encode(text)] == [t for t in expected if t != 3]
    alone = complete(lm, params, tokenizer, ["c"], beams=64, **options | {"state": lm.init_state(1)})
    assert alone.texts[0] == found.texts[1]
    assert int(alone.state.position_B[0]) == int(found.state.position_B[1])


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["window", pytest.param("gated_deltanet", marks=pytest.mark.thorough)])
def test_the_memory_of_a_beam_goes_with_it(kind):
    tokenizer = Words("w", list("abcdefghijklmnop"))
    lm, params = make(kind, size=16)
    prompts = ["a b c d e f g h i j", "k"]
    options = {"max_tokens": 5, "sampling": GREEDY, "chunk": 8}
    found, greedy = (complete(lm, params, tokenizer, prompts, beams=beams, **options) for beams in (3, 1))

    call = jax.jit(lm.__call__)

    def mean(prompt, text):
        ids = tokenizer.encode(f"{prompt} {text}")
        logp_TV = np.asarray(jax.nn.log_softmax(call(params, np.pad(ids, (0, 20 - len(ids)))[None], lm.init_state(1))[0][0]))
        new = len(text.split())
        return float(np.mean([logp_TV[t - 1, ids[t]] for t in range(len(ids) - new, len(ids))]))

    scores = [[mean(*pair) for pair in zip(prompts, done.texts, strict=True)] for done in (found, greedy)]
    assert all(beam >= alone - 1e-5 for beam, alone in zip(*scores, strict=True))
    texts = [f"{prompt} {text}" for prompt, text in zip(prompts, found.texts, strict=True)]
    again = complete(lm, params, tokenizer, texts, max_tokens=0, chunk=8)
    follow = [complete(lm, params, tokenizer, ["a", "a"], state=done.state, **options).texts for done in (found, again)]
    elsewhere = complete(lm, params, tokenizer, ["c d", "e"], beams=3, **options)
    other = complete(lm, params, tokenizer, ["a", "a"], state=elsewhere.state, **options).texts
    assert follow[0] == follow[1] != other


def test_writing_again_compiles_nothing_whatever_the_lengths_and_settings():
    lm, params = model.__wrapped__("window", 264, 2), make("window", key=6)[1]  # a model of which nothing is compiled
    write = partial(complete, lm, params, TOKENIZER)
    write(["one", "two"], max_tokens=20, sampling=Sampling(), chunk=16)
    sizes = writer._write._cache_size(), writer._read._cache_size()
    write(["1", "a longer one"], max_tokens=37, sampling=Sampling(temperature=0.3, top_k=5, top_p=0.5), chunk=16, look=7)
    write(["x", "y"], max_tokens=3, sampling=Sampling(temperature=2.0), chunk=16, stop=["q"], seed=8)
    assert writer._write._cache_size() == sizes[0]
    assert writer._read._cache_size() <= sizes[1] + 2  # sizes of a last chunk


def test_layers_without_stacks_write_the_same(monkeypatch):
    lm, params = make("window", key=7)
    plain = complete(lm, params, TOKENIZER, PROMPTS, max_tokens=8, sampling=GREEDY)
    monkeypatch.setattr(unstack, "LARGE", 0)
    unstack.unstacked.cache_clear()
    apart = complete(lm, params, TOKENIZER, PROMPTS, max_tokens=8, sampling=GREEDY)
    assert len(unstack.unstacked(lm).model.stacks) == 2 > len(lm.model.stacks)
    unstack.unstacked.cache_clear()
    assert apart.texts == plain.texts
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), apart.state, plain.state)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beams": 0}, "beams must be"),
        ({"beams": 2, "sampling": Sampling()}, "temperature to 0"),
        ({"stop": "abc"}, "list of strings"),
        ({"source": ["a", "b"]}, "2 sources for 1"),
    ],
)
def test_options_that_cannot_be_are_user_errors(options, says):
    lm, params = make("window")
    with pytest.raises(UserError, match=says):
        complete(lm, params, TOKENIZER, ["a"], **options)


def test_a_memory_of_other_streams_is_a_user_error():
    lm, params = make("window")
    with pytest.raises(UserError, match="3 streams, but the number of prompts is 1; .*take_rows"):
        complete(lm, params, TOKENIZER, ["a"], state=lm.init_state(3))


@pytest.mark.parametrize("name", ["beams", "chunk", "look"])
def test_options_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"{name} must be 1 or more, not 0"):
        memtx.Options(**{name: 0})
