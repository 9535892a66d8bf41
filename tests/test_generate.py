"""Generation draws from the model's own distribution and carries memory from the prompt to the text and out again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.generate import Sampling, generate, sample
from memtx.runs.configure import build, configure

TOKENIZER = Tokenizer("bytes", 264)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", params=["window", "xl", "lstm"])
def model(request):
    settings = {"window": {"window": 16}, "xl": {"segment": 8, "memory": 8}}.get(request.param, {})
    values = {"stacks": [[[request.param], 1]], "width": 16, "num_heads": 2, "ff_dim": 32}
    lm = build(configure({"model": values, "memory": {request.param: settings}}), vocab_size=264)
    return lm, lm.init(jax.random.key(3))


def drain(generator):
    def finish():
        done.append((yield from generator))

    done = []
    text = "".join(finish())
    assert done[0].texts == [text]
    return text, done[0].state


def test_greedy_text_is_the_argmax_of_the_whole_text_read_at_once(model):
    lm, params = model
    text, _ = drain(generate(lm, params, TOKENIZER, "to be or", max_tokens=6, sampling=GREEDY, chunk=3))
    allowed = np.asarray(TOKENIZER.bytes_V > 0) | (np.arange(264) == TOKENIZER.bos)
    ids = [TOKENIZER.bos, *b"to be or"]
    drawn, call = [], jax.jit(lm.__call__)
    for _ in range(6):
        padded = np.pad(ids, (0, 16 - len(ids)))  # one length, one program; no token sees a later one
        logits, _ = call(params, padded[None], lm.init_state(1))
        token = int(np.argmax(np.where(allowed, logits[0, len(ids) - 1], -np.inf)))
        if token == TOKENIZER.bos:
            break
        ids.append(token)
        drawn.append(token)
    assert text == TOKENIZER.decode(drawn)


def test_the_size_of_chunks_does_not_matter(model):
    lm, params = model
    texts = {
        drain(generate(lm, params, TOKENIZER, "long ago " * 4, max_tokens=8, sampling=GREEDY, chunk=c))[0] for c in (1, 5, 64)
    }
    assert len(texts) == 1


def test_a_text_goes_on_where_it_stopped(model):
    lm, params = model
    whole, _ = drain(generate(lm, params, TOKENIZER, "abc, then def", max_tokens=4, sampling=GREEDY))
    _, state = drain(generate(lm, params, TOKENIZER, "abc,", max_tokens=0, sampling=GREEDY))
    rest, state = drain(generate(lm, params, TOKENIZER, " then def", max_tokens=4, sampling=GREEDY, state=state))
    assert rest == whole
    assert int(state.position_B[0]) == 1 + len("abc, then def") + len(TOKENIZER.encode(rest))


def test_a_seed_gives_the_same_text_again_and_another_seed_another(model):
    lm, params = model
    texts = [drain(generate(lm, params, TOKENIZER, "x", max_tokens=12, seed=seed))[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_sampling_keeps_what_it_should():
    logits = jnp.log(jnp.asarray([0.5, 0.25, 0.15, 0.1]))

    def drawn(sampling):
        keys = jax.random.split(jax.random.key(0), 400)
        return set(np.asarray(jax.vmap(lambda key: sample(logits, key, sampling))(keys)).tolist())

    assert drawn(Sampling(temperature=1.0, top_p=1.0)) == {0, 1, 2, 3}
    assert drawn(Sampling(temperature=1.0, top_k=2, top_p=1.0)) == {0, 1}
    assert drawn(Sampling(temperature=1.0, top_p=0.7)) == {0, 1}
    assert drawn(Sampling(temperature=1.0, top_p=0.4)) == {0}
    assert drawn(Sampling(temperature=0.0)) == {0}


def test_draws_follow_the_temperature():
    logits = jnp.log(jnp.asarray([0.8, 0.2]))
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.vmap(lambda key: sample(logits, key, Sampling(temperature=2.0, top_p=1.0)))(keys)
    expected = 0.8**0.5 / (0.8**0.5 + 0.2**0.5)
    assert float((draws == 0).mean()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
