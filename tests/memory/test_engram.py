"""What engram promises beyond the contract: exact rows, the gate alone at first, canonical tokens, how its table learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memtx
from memtx import build
from memtx.core import Dims, segment
from memtx.data.tokenizers import byte_tokenizer, numbers
from memtx.errors import UserError
from memtx.memory.engram import Engram, canonical_ids
from memtx.ops import ngram
from memtx.runs.configure import get_config
from memtx.runs.presets import preset
from tests.runs import tiny

VOCAB = 128_000
DIMS = Dims(width=16, num_heads=2, num_kv_heads=2, head_dim=8, vocab_size=VOCAB)
CONFIG = Engram.Config(orders=(2, 4), heads=2, rows=100, dim=3, pad=5)
RNG = np.random.default_rng(0)
TOKEN = RNG.integers(0, VOCAB, (2, 12))
X = jnp.asarray(RNG.normal(size=(2, 12, 16)), jnp.float32)


def call(layer, token_BT, x_BTD=X):
    seg = segment(np.broadcast_to(np.arange(token_BT.shape[1]), token_BT.shape)).replace(token_BT=jnp.asarray(token_BT))
    return layer(x_BTD, layer.init_state(len(token_BT)), seg)[0]


def test_rows_are_the_hashes_of_pythons_integers():
    layer = Engram(CONFIG, DIMS, jax.random.key(0))
    padded = np.concatenate([np.full((2, 3), 5), TOKEN], 1)
    rows = np.asarray(layer.rows(jnp.asarray(padded), 12))
    multiplier, prime = ngram.multipliers(0, 4, VOCAB), ngram.next_primes(100, 4)
    for b, t, which in np.ndindex(rows.shape):
        mixed = 0
        for j in range((2, 4)[which // 2]):
            mixed ^= int(padded[b, t + 3 - j]) * multiplier[j]
        assert rows[b, t, which] == sum(prime[:which]) + mixed % prime[which]
    assert len(np.unique(rows)) > 50


def test_the_convolution_begins_at_zero():
    layer = Engram(CONFIG, DIMS, jax.random.key(0))
    padded = jnp.asarray(np.concatenate([np.full((2, 3), 5), TOKEN], 1))
    e = layer.embed(layer.rows(padded, 12))
    np.testing.assert_array_equal(call(layer, TOKEN), layer.gate(X, e) * layer.value(e))
    begun = Engram(dataclasses.replace(CONFIG, conv_scale=0.5), DIMS, jax.random.key(0))
    assert jnp.abs(call(begun, TOKEN) - call(layer, TOKEN)).max() > 1e-2  # control


def test_the_gate_is_between_zero_and_one_and_has_finite_slopes():
    layer = Engram(CONFIG, DIMS, jax.random.key(0))
    zero = jnp.zeros_like(X)  # a = 0, where the root has no slope
    grads = jax.grad(lambda x: call(layer, TOKEN, x).sum())(zero)
    assert np.isfinite(grads).all()
    gate = layer.gate(X, jnp.asarray(RNG.normal(size=(2, 12, 12)), jnp.float32))
    assert ((gate > 0) & (gate < 1)).all()
    assert gate.min() < 0.4 < 0.6 < gate.max()


def test_tokens_with_one_canonical_id_are_one():
    canonical = tuple(np.arange(VOCAB) // 2)
    other = TOKEN ^ 1  # the other token of each pair
    plain, paired = (Engram(dataclasses.replace(CONFIG, canonical=c), DIMS, jax.random.key(0)) for c in ((), canonical))
    np.testing.assert_array_equal(call(paired, TOKEN), call(paired, other))
    assert jnp.abs(call(plain, TOKEN) - call(plain, other)).max() > 1e-2  # control


def test_canonical_ids_are_those_of_the_authors_code():
    """The lookup table of engram_demo_v1.py's CompressedTokenizer, for tokens with these texts."""
    words = [
        "The",
        " the",
        "THE",
        "ｔｈｅ",
        "thé",
        "THÉ",
        "then",
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n ",
        "\u00a0",
        "a b",
        "a  \n B",
        "ﬁ",
        "fi",
        "É",
    ]
    pieces = [word.encode() for word in words] + [b"\xc3", b"\xe2\x80", b"\xc3", "\u0301".encode(), b"", b""]
    expected = (0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 6, 7, 6, 8, 9, 10)
    assert canonical_ids(pieces) == expected


def canonical_of(lm) -> tuple[int, ...]:
    return lm.model.memory["engram"].canonical


@pytest.mark.thorough
def test_runs_compress_the_vocabulary_of_subwords_and_only_that(tmp_path):
    """In training, loading and evaluation alike; not where tokens are bytes or a task's words, nor with compress=False."""
    bpe = tiny(tmp_path, "engram", data={"tokenizer": "bpe:400"})
    model = dataclasses.replace(bpe.model, memory={"engram": Engram.Config(heads=2, rows=50, dim=4)})
    memtx.train(dataclasses.replace(bpe, model=model), tmp_path / "run", say=lambda line: None)
    loaded = memtx.load(tmp_path / "run")
    ids = canonical_of(loaded.lm)
    assert ids == canonical_ids(loaded.tokenizer.pieces)
    assert len(set(ids)) < len(ids) == 400
    lower, upper = (loaded.tokenizer.encode(text) for text in "aA")
    assert lower != upper
    assert ids[lower[0]] == ids[upper[0]]

    subwords = loaded.tokenizer.subwords
    assert len(canonical_of(build(model, vocab_size=500, subwords=subwords))) == 500  # rows that no token has
    assert canonical_of(build(model, vocab_size=264, subwords=byte_tokenizer().subwords)) == ()
    assert canonical_of(build(model, vocab_size=9, subwords=numbers(9).subwords)) == ()
    off = dataclasses.replace(model, memory={"engram": Engram.Config(compress=False)})
    assert canonical_of(build(off, vocab_size=400, subwords=subwords)) == ()


def test_the_convolution_reaches_as_far_as_the_longest_order():
    sizes = {order: Engram(Engram.Config(orders=(2, order)), DIMS, jax.random.key(0)).init_state(1) for order in (3, 5)}
    assert {order: tail.input_BSD.shape[1] for order, tail in sizes.items()} == {3: 3 * 3, 5: 3 * 5}
    apart = Engram(Engram.Config(orders=(2, 5), dilation=2), DIMS, jax.random.key(0)).init_state(1)
    assert apart.input_BSD.shape[1] == 3 * 2


def test_the_table_learns_faster_and_does_not_decay():
    lm = build(get_config(model=preset("engram", "tiny")), vocab_size=264)
    lr, optim = (lm.declared(field, default) for field, default in (("lr", 1.0), ("optim", "")))
    fast = {
        jax.tree_util.keystr(path): label
        for (path, rate), label in zip(jax.tree_util.tree_leaves_with_path(lr), jax.tree.leaves(optim), strict=True)
        if rate == 5.0
    }
    assert fast
    assert all(path.endswith("['table']") and label == "no_decay" for path, label in fast.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orders": (1, 2)}, "must list lengths of n-grams"),
        ({"orders": (3, 2)}, "in rising order"),
        ({"rows": 2**30}, "below 2^30"),
        ({"kernel": 1}, "kernel must be at least 2"),
        ({"dilation": -1}, "dilation must be 0 or more"),
        ({"canonical": (0, 1)}, "2 ids for a vocabulary of 128000"),
    ],
)
def test_what_cannot_be_is_said(changes, message):
    with pytest.raises(UserError) as error:
        Engram(Engram.Config(**changes), DIMS, jax.random.key(0))
    assert message in str(error.value)
