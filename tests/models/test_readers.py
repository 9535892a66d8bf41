"""Layers that read the memory of an earlier one: readers see what the writer's queries would see, and have no state.

B stream, T time, S source time, N heads, H head dim, D model.
"""

import functools
import re
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.contract.case import distance
from memtx.core import Dims, collect, segment, state_bytes
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.models.readers import KIND, Reader, Written, publish
from memtx.ops import chunks
from memtx.pretrained.llama import NAMES
from memtx.pretrained.names import find_slots, flat
from memtx.runs.configure import build, get_config

EXACT, MOVED = 3e-5, 1e-3
SIZES = {"width": 16, "num_heads": 4, "num_kv_heads": 2, "ff_dim": 16, "vocab_size": 11}
TOKEN = np.random.default_rng(0).integers(0, 11, (2, 12))
SHARED = sorted(name for name, cls in MEMORIES.items() if cls.site == "attention" and cls.readable)
# in a group, and across stacks from the last of two groups; beside another memory, by a gate, and twice in a block
MIXED = ((("window/full", "lstm+^window"), 2), (("^full/^window", "full", "^full*lstm"), 1))
ODD = [5, 1, 5, 1]


def model(stacks, **changes):
    config = get_config(model={**SIZES, "stacks": stacks, **changes})
    with config.unlocked():
        for name in config.memory:
            config.memory[name] = vars(MEMORIES[name].tiny[0])
    return build(config)


def parameters(lm):
    """Large and of every kind (gates and scales too), so that each part counts."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: (0.4 * rng.normal(size=a.shape) + (a.ndim < 3)).astype(np.float32), lm.abstract_params)


@functools.cache
def jitted(lm):
    return jax.jit(lm.__call__)


def run(lm, params, cuts, token=TOKEN, key=None):
    state, outs, start = lm.init_state(len(token)), [], 0
    for time in cuts:
        logits, state = jitted(lm)(params, token[:, start : start + time], state, key=key)
        outs.append(logits)
        start += time
    return jnp.concatenate(outs, 1), state


@pytest.mark.parametrize("name", SHARED)
def test_a_reader_with_the_writers_parameters_gives_what_the_writer_gives(name):
    dims = Dims(width=8, num_heads=4, num_kv_heads=2, head_dim=4)

    def make(dims, key):
        return MEMORIES[name](MEMORIES[name].tiny[0], dims, key)

    writer, reader = (cls(name, make, dims, jax.random.key(0)) for cls in (Written, Reader))

    @jax.jit
    def call(q, k, v, other, state, seg):
        (y, after), emitted = collect(writer, KIND)((q, k, v), state, seg)
        seg, rest = publish(seg, emitted)
        same, differs = (reader((own, None, None), (), seg) for own in (q, other))
        assert (same[1], rest) == ((), {})
        return y, same[0], differs[0], after

    state, *x = writer.init_state(2), *(jax.random.normal(jax.random.key(i), (2, 8, n, 4)) for i, n in enumerate((4, 2, 2, 4)))
    for start in (0, 4):
        seg = segment(start + np.arange(4) + np.zeros((2, 1)))
        y, same, differs, state = call(*(a[:, start : start + 4] for a in x), state, seg)
        assert distance(same, y) <= 1e-6  # two programs, which round apart
        assert distance(differs, y) > MOVED  # control: it asks by its own queries


@pytest.mark.thorough
@pytest.mark.parametrize("stacks", [MIXED, ((("memorizing", "window+^memorizing"), 1),)], ids=["mixed", "bank"])
def test_cuts_do_not_matter(stacks):
    lm = model(stacks)
    params = parameters(lm)
    whole = run(lm, params, [12])
    assert distance(run(lm, params, ODD), whole) <= EXACT
    assert distance(run(lm, params, [1] * 12), whole) <= EXACT


def test_control_a_reader_of_the_state_after_the_call_sees_the_future(monkeypatch):
    def read_after(self, x, state, seg, *, key=None):
        k, v, written = seg.shared[self.name]
        _, after = self.memory((x[0], k, v), written, seg)
        return self.memory((x[0], None, None), after, seg)[0], state

    def gaps():
        lm = model(((("full", "^full"), 1),))
        params = parameters(lm)
        whole, early = (run(lm, params, [12], token)[0] for token in (TOKEN, moved))
        return distance(run(lm, params, [1] * 12)[0], whole), distance(early[:, :11], whole[:, :11])

    moved = np.where(np.arange(12) == 11, (TOKEN + 1) % 11, TOKEN)
    cut, future = gaps()
    assert cut <= EXACT
    assert future == 0
    monkeypatch.setattr(Reader, "__call__", read_after)
    jax.clear_caches()
    assert min(gaps()) > MOVED
    jax.clear_caches()


@pytest.mark.thorough
@pytest.mark.parametrize("body", ["rmt", "armt"])
def test_memory_tokens_go_around_readers(body):
    lm = model(((("full", "^full"), 1), (("^full",), 1)), body=body)
    params = parameters(lm)
    whole = run(lm, params, [12])
    assert distance(run(lm, params, ODD), whole) <= EXACT
    (reader,) = (leaf for path, leaf in flat(params).items() if re.search("bodies/1/.*attention/q/w", path))
    reader *= -1  # control: its queries
    assert distance(run(lm, params, [12])[0], whole[0]) > MOVED


@pytest.mark.thorough
def test_a_row_that_begins_anew_forgets_and_others_do_not():
    lm = model(MIXED)
    params = parameters(lm)
    _, state = run(lm, params, [6], TOKEN[:, :6])
    at = np.array([[0], [6]]) + np.arange(6)
    y, _ = jitted(lm)(params, TOKEN[:, 6:], state, segment(at, reset_B=[True, False]))
    fresh, went_on = run(lm, params, [6], TOKEN[:, 6:])[0], run(lm, params, [6, 6])[0][:, 6:]
    assert distance(y[0], fresh[0]) <= EXACT
    assert distance(y[1], went_on[1]) <= EXACT
    assert distance(fresh, went_on) > MOVED  # control


@pytest.mark.thorough
def test_unrolled_is_scanned_and_rematerialised():
    def loss(lm, params, key):
        logits, state = run(lm, params, [6, 6], key=key)
        return jax.nn.logsumexp(logits, -1).sum(), (logits, state)

    lms = [
        model(((("full", "^full"), 2), (("^full",), 1)), dropout=0.2, **how) for how in ({}, {"scan": False}, {"remat": True})
    ]
    params = parameters(lms[0])
    calls = [jax.jit(jax.value_and_grad(functools.partial(loss, lm), has_aux=True)) for lm in lms]
    scanned, *others = (call(params, jax.random.key(0)) for call in calls)
    for other in others:
        assert distance(other, scanned) <= 1e-4
    assert distance(calls[0](params, jax.random.key(1)), scanned) > MOVED  # control


@pytest.mark.thorough
def test_a_reader_in_every_group_of_a_stack_reads_the_last_group_before_it():
    """The same weights in one group a stack, where there is no other group to take for it."""
    grouped = model(((("full",), 2), (("^full", "window"), 2)))
    single = model(((("full",), 1), (("full",), 1), (("^full",), 1), (("window",), 1), (("^full",), 1), (("window",), 1)))
    params = parameters(grouped)
    theirs = flat(params)

    def leaf(path, shape):
        at = jax.tree_util.keystr(path, simple=True, separator="/")
        found = re.fullmatch(r"body/bodies/(\d)/layers/0/(.*)", at)
        if not found:
            return theirs[at]
        stack, layer, group = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)][int(found[1])]
        return theirs[f"body/bodies/{stack}/layers/{layer}/{found[2]}"][group][None]

    same = jax.tree_util.tree_map_with_path(leaf, single.abstract_params)
    y = run(grouped, params, ODD)[0]
    assert distance(run(single, same, ODD)[0], y) <= EXACT
    first, second = (same["body"]["bodies"][i]["layers"][0]["branches"][0]["attention"] for i in (0, 1))
    for name in "kv":
        first[name], second[name] = second[name], first[name]
    assert distance(run(single, same, ODD)[0], y) > MOVED  # control


def test_readers_cost_no_state_and_no_keys_and_values():
    writer, reader, both = (
        model(((("memorizing",), 1), *more)) for more in ((), (((("^memorizing",), 3),)), ((("memorizing",), 3),))
    )
    assert state_bytes(reader) == state_bytes(writer) < state_bytes(both)
    assert jax.tree.leaves(reader.init_state(1).body[1]) == []
    kv = 3 * 16 * 2 * 2 * 4  # layers, width, k and v, heads, head dim
    assert both.num_params() - reader.num_params() == kv
    mixed = model(((("memorizing", "window+^memorizing"), 1),))  # the window beside it needs separate keys
    assert any("layers/1/branches/0/attention/k/" in path for path in flat(mixed.abstract_params))


# --- against float64 numpy ----------------------------------------------------------------------------------------------------


def two_layers(p, x_TD, hold: bool = False):
    """The blocks "full" and "^full" on one stream, without positions. hold: its keys and values count as constant."""

    def heads(h_TD, w):
        return (h_TD @ w).reshape(len(h_TD), -1, 4)

    def norm(h_TD, scale):
        return scale * h_TD / np.sqrt((h_TD**2).mean(-1, keepdims=True) + 1e-6)

    def attention(q, k, v):
        k, v = (np.repeat(a, 2, 1) for a in (k, v))
        score = np.einsum("tnh,snh->nts", q, k) / 2
        weight = np.exp(score - score.real.max()) * np.tri(len(q))
        return np.einsum("nts,snh->tnh", weight / weight.sum(-1, keepdims=True), v).reshape(len(q), -1)

    for i in (0, 1):
        at = f"{i}/branches/0/attention"
        h_TD = norm(x_TD, p[f"{i}/norms/0/scale"])
        if i == 0:
            k, v = (heads(h_TD, p[f"{at}/{name}/w"]) for name in "kv")
        elif hold:
            k, v = k.real, v.real
        x_TD = x_TD + attention(heads(h_TD, p[f"{at}/q/w"]), k, v) @ p[f"{at}/out/w"]
        up_TF = norm(x_TD, p[f"{i}/norms/1/scale"]) @ p[f"{i}/branches/1/memories/0/up/w"]
        x_TD = x_TD + up_TF * (up_TF.real > 0) @ p[f"{i}/branches/1/memories/0/down/w"]
    return x_TD


def test_two_layers_match_float64_and_the_gradient_reaches_the_writers_keys_and_values():
    lm = model(((("full", "^full"), 1),), position="none", activation="relu")
    graph, abstract = nnx.split(lm._static.body)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape), nnx.to_pure_dict(abstract))
    x_BTD = rng.normal(size=(2, 7, 16))  # as many as the tiny cache holds
    weight = rng.normal(size=x_BTD.shape)

    def call(params):
        nnx.replace_by_pure_dict(abstract, jax.tree.map(jnp.float32, params))
        layers = nnx.merge(graph, abstract)
        state, outs = layers.init_state(2), []
        for part in (slice(0, 4), slice(4, 7)):
            y, state = layers(jnp.float32(x_BTD[:, part]), state, segment(np.arange(7)[None, part] + np.zeros((2, 1))))
            outs.append(y)
        return jnp.concatenate(outs, 1)

    def loss(params):
        y = call(params)
        return (y * weight).sum(), y

    short = lambda path: path.removeprefix("bodies/0/layers/")  # noqa: E731
    own = {short(path): leaf[0] for path, leaf in flat(params).items()}
    grads, y = jax.jit(jax.grad(loss, has_aux=True))(jax.tree.map(jnp.float32, params))
    assert distance(y, np.stack([two_layers(own, x_TD) for x_TD in x_BTD])) <= 1e-5
    for path, grad in flat(grads).items():
        name, direction = short(path), rng.normal(size=grad.shape[1:])
        stepped = {**own, name: own[name] + 1e-20j * direction}  # the complex step: exact to float64
        slope, held = (
            sum((two_layers(stepped, x, hold).imag / 1e-20 * w).sum() for x, w in zip(x_BTD, weight, strict=True))
            for hold in (False, True)
        )
        size = np.abs(grad[0] * direction).sum()
        assert abs((grad[0] * direction).sum() - slope) <= 1e-5 * size, name
        if name.startswith(("0/branches/0/attention/k/", "0/branches/0/attention/v/", "0/norms/0")):
            assert abs(slope - held) > 1e-3 * size  # control: a good part comes by way of the reader


# --- errors, and unchanged parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stacks", "line"),
    [
        (((("^full",), 1),), r"\^full needs an earlier layer with full"),
        (((("full/^full",), 1),), "needs an earlier layer with full"),
        (((("^full", "full"), 2),), "needs an earlier layer with full"),
        (((("full",), 1), (("^full", "full"), 2)), r"put full before it in the pattern, or write each group as a stack"),
        (((("lstm", "^lstm"), 1),), r"\^lstm in '\^lstm' is not allowed"),
        (((("window", "window/^mlp"), 1),), r"\^mlp in 'window/\^mlp' is not allowed"),
        (((("landmark", "^landmark"), 1),), r"\^landmark in '\^landmark' is not allowed"),
        (((("full", "^^full"), 1),), "cannot parse"),
        (((("full", "^fulll"), 1),), "fulll"),
    ],
)
def test_a_reader_that_cannot_be_is_one_line(stacks, line):
    with pytest.raises(UserError, match=line) as error:
        model(stacks)
    assert "\n" not in str(error.value)


def test_an_encoder_has_readers_of_its_own():
    layers = {"encoder": ((("bidirectional", "^bidirectional"), 1),)}
    lm = model(((("full+cross", "^full"), 1),), **layers)
    params = parameters(lm)
    encode = jax.jit(lm.encode)
    states = (encode(params, source, lm.init_state(2)) for source in (TOKEN[:, :4], TOKEN[:, 4:8]))
    y, moved = (jitted(lm)(params, TOKEN, state)[0] for state in states)
    assert distance(y, moved) > MOVED
    with pytest.raises(UserError, match=r"needs an earlier layer with bidirectional"):
        model(((("bidirectional",), 1),), encoder=((("^bidirectional",), 1),))


def test_pretrained_attention_needs_a_place_of_its_own():
    beside, alone = (model(((("full",), 1), ((entry,), 1)), closed=True) for entry in ("full+^full", "^full"))
    assert any(slot.ours[0][0].startswith("body/bodies/1/layers/0/branches/0/attention") for slot in find_slots(NAMES, beside))
    with pytest.raises(UserError, match=r"the block of model.layers.1.\* has no attention that"):
        find_slots(NAMES, alone)
    gains = [{path for path in flat(lm.abstract_params) if path.endswith("gain")} for lm in (beside, alone)]
    assert gains == [{"body/bodies/1/layers/0/branches/0/gain"}] * 2  # the output of a reader is zero at first


def test_entries_of_readers():
    assert patterns.parse("window+^full/mlp")[0] == patterns.Branch(("window", "full"), readers=(1,))
    assert patterns.names(MIXED) == ["window", "full", "lstm"]
    stacks = ((("full", "window"), 3), (("^full/^window", "full", "^full"), 1))
    assert patterns.readings(stacks) == [("full", (0, 0), (1, 0)), ("window", (0, 1), (1, 0)), ("full", (1, 1), (1, 2))]


def test_mechanisms_do_not_notice_that_memories_are_handed_on(monkeypatch):
    """Where nobody wants anything but losses, they need not look for what a chunk emits."""
    look = Mock(return_value=True)
    monkeypatch.setattr(chunks, "emits_only_losses", look)

    def read(x_BT):
        seg = segment(np.arange(4)[None])
        return chunks.in_chunks(2, lambda s, x_BQ, _: (s + x_BQ.sum(1), x_BQ), x_BT, np.zeros(1), np.zeros(1, int), seg)

    for kinds, times in (("loss", 0), ("metric", 1)):  # the second is the control
        jax.eval_shape(collect(read, also=(kinds, KIND)), np.ones((1, 4)))
        assert look.call_count == times
