"""BERT and T5 against Hugging Face's torch models at random weights: tests/golden/hf/encoders.py made the goldens."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memtx.core import collect, segment
from memtx.errors import UserError
from memtx.models.lm import LM
from memtx.models.settings import complete_model
from memtx.pretrained import load as pretrained
from memtx.pretrained.names import find_slots, flat

FOLDER = Path(__file__).parents[1] / "golden" / "hf"
BERT = ("bert-model", "bert-masked-lm", "bert-classification", "bert-span")
T5 = ("t5-v1.0", "t5-v1.1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """name -> (the golden, the model, its parameters), by way of a folder as Hugging Face writes it."""

    @cache
    def load(name: str):
        golden = dict(np.load(FOLDER / f"{name}.npz"))
        folder = write(tmp_path_factory.mktemp(name), golden)
        lm = LM(pretrained.settings(str(folder)))
        return golden, lm, pretrained.load_params(lm, jax.random.key(0))

    return load


def write(folder: Path, golden) -> Path:
    save_file(of(golden, "weight."), folder / "model.safetensors")
    (folder / "config.json").write_text(str(golden["config"]))
    return folder


def of(golden, kind: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(kind): value for key, value in golden.items() if key.startswith(kind)}


def close(ours, theirs, tolerance: float = 1e-5) -> bool:
    return bool(np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(1, np.abs(theirs).max()))


def nll(logits, labels):
    """Mean over the labels that are not -100."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    return jnp.where(labels >= 0, jax.nn.logsumexp(logits, -1) - chosen, 0).sum() / (labels >= 0).sum()


def gradients_match(lm: LM, golden, gradient) -> None:
    family = next(family for family in pretrained.FAMILIES if family.holds(lm.model))
    ours = {slot.theirs: slot.to_theirs(flat(gradient)) for slot in find_slots(family.NAMES, lm)}
    theirs = {name: grad for name, grad in of(golden, "grad.").items() if name in ours}
    assert ours.keys() == theirs.keys()
    assert sum(grad.size for grad in ours.values()) == lm.num_params()
    for name, grad in theirs.items():
        assert np.abs(ours[name] - grad).max() <= 1e-4 * max(np.abs(grad).max(), 1e-2), name


# --- BERT -----------------------------------------------------------------------------------------------------------------


def read(lm, params, golden):
    """What the model gives for the golden's inputs, and the last hidden states."""
    given = of(golden, "input.")
    length_B = given["attention_mask"].sum(1)
    seg = segment(np.broadcast_to(np.arange(9), (3, 9)), length_B).replace(shared={"token_type": given["token_type_ids"]})
    (y, _), aux = collect(lambda: lm(params, given["input_ids"], lm.init_state(3), seg), "hidden")()
    return y, aux["hidden"][0]


def loss(name: str, y, golden):
    given = of(golden, "input.")
    if name != "bert-span":
        return nll(y, given["labels"])
    return (nll(y[..., 0], given["start_positions"]) + nll(y[..., 1], given["end_positions"])) / 2


def unpadded(y, golden):
    """Hugging Face computes something in the padding too."""
    return np.where(golden["input.attention_mask"].reshape(3, 9, *[1] * (np.ndim(y) - 2)) == 1, y, 0)


def test_bert_gives_hugging_faces_numbers(model):
    golden, lm, params = model("bert-model")
    pooled, hidden = jax.jit(lambda p: read(lm, p, golden))(params)
    assert close(pooled, golden["y.pooler_output"])
    assert close(unpadded(hidden, golden), unpadded(golden["y.last_hidden_state"], golden))


@pytest.mark.parametrize("name", BERT[1:])
def test_heads_losses_and_gradients_of_bert(model, name):
    golden, lm, params = model(name)

    def objective(params):
        y, _ = read(lm, params, golden)
        return loss(name, y, golden), y

    (value, y), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    theirs = np.stack([golden["y.start_logits"], golden["y.end_logits"]], -1) if name == "bert-span" else golden["y.logits"]
    if name != "bert-classification":
        y, theirs = unpadded(y, golden), unpadded(theirs, golden)
    assert close(y, theirs)
    assert abs(value - golden["y.loss"]) <= 1e-5
    gradients_match(lm, golden, gradient)


# --- T5 -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param(T5[0], marks=pytest.mark.thorough), T5[1]])
def t5(model, request):
    return model(request.param)


def encoded(lm, params, golden):
    given = of(golden, "input.")
    return jax.jit(lm.encode)(params, given["input_ids"], lm.init_state(3), given["attention_mask"].sum(1))


def shifted(labels):
    """What the decoder reads: the labels one later, after the token that begins (0)."""
    return np.concatenate([np.zeros((3, 1), int), np.maximum(labels, 0)[:, :-1]], 1)


def test_t5_gives_hugging_faces_logits_loss_and_gradients(t5):
    golden, lm, params = t5
    labels = golden["input.labels"]

    def objective(params):
        logits, _ = lm(params, shifted(labels), encoded(lm, params, golden))
        return nll(logits, labels), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert close(logits, golden["y.logits"])
    assert abs(value - golden["y.loss"]) <= 1e-5
    gradients_match(lm, golden, gradient)


def test_the_source_may_come_with_the_first_call_or_before_it(model):
    golden, lm, params = model("t5-v1.0")
    given = of(golden, "input.")
    token = shifted(given["labels"])[:, :5]
    seg = segment(np.broadcast_to(np.arange(5), (3, 5)))
    source = {"source/token": given["input_ids"], "source/length": given["attention_mask"].sum(1)}
    call = jax.jit(lm.__call__)
    before, _ = call(params, token, encoded(lm, params, golden), seg)
    within, state = call(params, token, lm.init_state(3), seg.replace(shared=source))
    without, _ = call(params, token, lm.init_state(3), seg)
    assert close(before, np.asarray(within))
    assert not close(without, np.asarray(within), 1e-3)
    again, _ = call(params, token, state, seg)  # it stays
    wiped, _ = call(params, token, state, seg.replace(reset_B=jnp.array([True, False, False])))
    differs = np.abs(np.asarray(again) - np.asarray(wiped)).max((1, 2)) > 1e-3
    np.testing.assert_array_equal(differs, [True, False, False])
    assert close(wiped[0], np.asarray(without[0]))


def test_t5_writes_hugging_faces_greedy_text(t5):
    golden, lm, params = t5
    state = encoded(lm, params, golden)
    call = jax.jit(lm.__call__)
    token, done = jnp.zeros((3, 1), int), jnp.zeros((3, 1), bool)
    written = [token]
    for _ in range(golden["y.generated"].shape[1] - 1):
        logits, state = call(params, token, state)
        done |= token == 1
        token = jnp.where(done, 0, logits.argmax(-1))
        written.append(token)
    assert len(np.unique(golden["y.generated"])) > 5
    np.testing.assert_array_equal(np.concatenate(written, 1), golden["y.generated"])


# --- both -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BERT + T5)
def test_what_is_written_back_is_bit_equal(model, name, tmp_path):
    golden, lm, params = model(name)
    pretrained.export(lm, params, tmp_path / "out")
    bare = lambda tensors: {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}  # noqa: E731
    written, weights = bare(load_file(tmp_path / "out" / "model.safetensors")), bare(of(golden, "weight."))
    assert written.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(written[key], value)
    again = LM(pretrained.settings(str(tmp_path / "out")))
    assert dataclasses.replace(again.model, pretrained="") == dataclasses.replace(lm.model, pretrained="")


def test_a_new_head_is_drawn_and_old_names_are_known(model, tmp_path):
    """bert-base-uncased has gamma and beta, and heads that a classifier does not want."""
    golden = dict(model("bert-masked-lm")[0])
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in golden.items()
    }
    folder = write(tmp_path, old)
    lm = LM(pretrained.settings(str(folder), output="classes", classes=5, pool="mean"))
    params = pretrained.load_params(lm, jax.random.key(1))
    assert read(lm, params, golden)[0].shape == (3, 5)
    np.testing.assert_array_equal(params["embed"], golden["weight.bert.embeddings.word_embeddings.weight"])
    other = pretrained.load_params(lm, jax.random.key(2))
    assert (params["output"]["classes"]["w"] != other["output"]["classes"]["w"]).all()
    np.testing.assert_array_equal(params["embed_norm"]["scale"], golden["weight.bert.embeddings.LayerNorm.weight"])


def test_a_model_that_sees_the_future_predicts_no_next_token(model):
    _, lm, _ = model("bert-masked-lm")
    with pytest.raises(UserError, match=r"model\.output=masked_lm does not predict next tokens"):
        lm.check_next_token()
    with pytest.raises(UserError, match="bidirectional sees later tokens"):
        LM(dataclasses.replace(lm.model, output="")).check_next_token()
    model("t5-v1.0")[1].check_next_token()  # its encoder may
    with pytest.raises(UserError, match="has no encoder"):
        lm.encode({}, np.zeros((1, 1), int), lm.init_state(1))


def test_memory_tokens_carry_a_document_through_bert(model):
    """Segment by segment: each learned place is used, the first segment tells the last, calls of whole segments are one."""
    _, plain, _ = model("bert-classification")
    around = {"rmt_encoder": {"segment": 6, "memory": 2}}
    changes = {"body": "rmt_encoder", "memory": around, "pool": "mean"}
    lm = LM(complete_model(dataclasses.replace(plain.model, **changes)))
    params = pretrained.load_params(lm, jax.random.key(0))
    token = jnp.asarray(np.random.default_rng(0).integers(2, 40, (2, 18)))
    call = jax.jit(lm.__call__)

    def read(token):
        state = lm.init_state(2)
        for start in range(0, 18, 6):
            logits, state = call(params, token[:, start : start + 6], state)
        return logits

    other = token.at[:, 0].set(1)
    _, aux = jax.jit(lambda: collect(lambda: lm(params, token, lm.init_state(2)), "hidden")())()
    whole = np.asarray(aux["hidden"][0])[:, 12:].mean(1) @ params["output"]["classes"]["w"] + params["output"]["classes"]["b"]
    assert close(read(token), np.asarray(whole))
    assert not close(read(other), np.asarray(whole), 1e-4)


@pytest.mark.parametrize("output", ["pooled", pytest.param("classes", marks=pytest.mark.thorough)])
def test_a_document_s_vector_is_the_mean_of_its_tokens_however_many_calls_they_came_in(output, model):
    _, plain, _ = model("bert-classification")
    changes = {"body": "rmt_encoder", "memory": {"rmt_encoder": {"segment": 6, "memory": 2}}, "output": output}
    lm = LM(complete_model(dataclasses.replace(plain.model, **changes, pool="document")))
    params, rng = lm.init(jax.random.key(0)), np.random.default_rng(0)
    hidden, state = [[], []], lm.init_state(2)

    @jax.jit
    def call(token, state, seg):
        return collect(lambda: lm(params, token, state, seg), "hidden")()

    def then(y_D):
        return y_D @ params["output"]["classes"]["w"] + params["output"]["classes"]["b"] if output == "classes" else y_D

    # the first row ends early and begins another document, the second is idle for a call
    for lengths, resets in (([6, 6], [1, 1]), ([4, 0], [0, 0]), ([6, 6], [1, 0]), ([2, 5], [0, 0])):
        seg = segment(jnp.broadcast_to(jnp.arange(6), (2, 6)), jnp.array(lengths), jnp.array(resets, bool))
        (y, state), aux = call(rng.integers(2, 40, (2, 6)), state, seg)
        for row in range(2):
            hidden[row] = [*([] if resets[row] else hidden[row]), *np.asarray(aux["hidden"][0])[row, : lengths[row]]]
            assert close(y[row], then(np.mean(hidden[row], 0)))
    assert [len(read) for read in hidden] == [8, 17]
    assert not close(y[1], then(np.mean(hidden[1][-5:], 0)), 1e-4)  # control: of the last call alone


def test_a_body_that_cannot_hold_its_layers_is_refused(model):
    reader, writer = (dataclasses.replace(model(name)[1].model, body="rmt") for name in ("bert-model", "t5-v1.0"))
    with pytest.raises(UserError, match=r"around bidirectional layers set model\.body=rmt_encoder"):
        complete_model(reader)
    with pytest.raises(UserError, match="resets the state of its layers"):
        complete_model(writer)
    complete_model(dataclasses.replace(reader, body="rmt_encoder"))
