"""Attribution: every mechanism with keys says which tokens each query read, in one form, however a text is cut into calls."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from memtx.config import Model
from memtx.contract.case import DIMS, Case, at
from memtx.core import collect
from memtx.memory import MEMORIES
from memtx.nn import attention
from memtx.nn.reads import NOWHERE, OWN, SOURCE
from memtx.runs.configure import build

TIME, CUTS, KINDS = 24, (11, 1, 11, 1), ("attribution", "attention")  # calls begin within chunks, and at the end of some


def case(name, dims=DIMS, **config) -> Case:
    return Case(name, MEMORIES[name], dataclasses.replace(MEMORIES[name].tiny[0], **config), dims)


def all_reads(aux):
    """The Reads of banks, then those of keys in attention."""
    return [*aux.get("attribution/reads", ()), *aux.get("attention/reads", ())]


@functools.cache
def emitted(of: Case, cuts=CUTS):
    """The Reads of each call, as NumPy arrays, with the position of the call's first token."""
    x, state, start, found = of.x(0, TIME), of.init_state(), 0, []
    run = jax.jit(collect(lambda x, state, seg: of.apply(of.params, x, state, seg), also=KINDS))
    for time in cuts:
        (_, state), aux = run(jax.tree.map(lambda a, s=start, t=time: a[:, s : s + t], x), state, at(start, time))
        found.append((start, all_reads(jax.device_get(aux))))
        start += time
    return found


def tokens_read(of: Case) -> list[set[int]]:
    """The tokens of the text that stream 1 read at each position."""
    found = [set() for _ in range(TIME)]
    for start, reads in emitted(of):
        for read in reads:
            for t, n, r in np.argwhere((read.weight_BTNR[1] > 0) & (read.document_BTNR[1] == OWN)):
                first = start + t + read.position_BTNR[1, t, n, r]
                found[start + t] |= {*range(first, first + read.tokens_BTNR[1, t, n, r])}
    return found


def since(t: int, size: int) -> set[int]:
    """The tokens from the start of t's chunk to t."""
    return {*range(t // size * size, t + 1)}


def last(t: int, size: int) -> set[int]:
    return {*range(max(t - size + 1, 0), t + 1)}


def compressed(t: int) -> set[int]:
    """Three compressed states of two tokens each, before the four hidden states before the segment of four."""
    return {*range(max(t // 4 * 4 - 10, 0), t + 1)}


SEEN = {
    "full": lambda t: last(t, 7),
    "window": lambda t: last(t, 5),
    "sink": lambda t: last(t, 4) | {*range(min(2, t + 1))},
    "xl": lambda t: since(t, 4) | {*range(max(t // 4 * 4 - 6, 0), t)},
    "compressive": compressed,
    "block_recurrent": lambda t: last(t, 5),
    "infini": lambda t: since(t, 4),
    "landmark": lambda t: since(t, 3),
    "memorizing": lambda t: last(t, 3),
    "titans_mac": lambda t: since(t, 4),
    "titans_mag": lambda t: last(t, 5),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SEEN)
def test_reads_are_the_tokens_that_a_query_sees(name):
    assert tokens_read(case(name)) == [SEEN[name](t) for t in range(TIME)]


def test_compressed_states_that_were_chosen_have_the_tokens_of_their_segment():
    chosen = case("compressive", compression="most_used", compressed=4)
    assert tokens_read(chosen)[19] == {*range(4, 20)}  # two segments, compressed to two states each, then memory and segment


@pytest.mark.parametrize("name", ["window", "xl", "sink", pytest.param("titans_mac", marks=pytest.mark.thorough), "cross"])
def test_the_weights_of_a_head_sum_to_one(name):
    for _, reads in emitted(case(name)):
        total = sum(read.weight_BTNR.sum(-1) + read.rest_BTN for read in reads)
        np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("memorizing", marks=pytest.mark.thorough), "infini"])
def test_a_gate_divides_the_weights_between_memory_and_attention(name):
    of = case(name)
    run = jax.jit(collect(lambda x, seg: of.apply(of.params, x, of.init_state(), seg), also=KINDS))
    aux = run(of.x(0, TIME), at(0, TIME))[1]
    [gate], reads = aux["attribution/gate"], all_reads(aux)
    near = reads[-1].weight_BTNR.sum(-1) + reads[-1].rest_BTN
    np.testing.assert_allclose(near, 1 - gate.share_BTN, atol=1e-5)
    assert float(gate.share_BTN[:, -1].min()) > 0.1  # control: the gate is open
    if name == "memorizing":
        np.testing.assert_allclose(reads[0].weight_BTNR.sum(-1), gate.share_BTN, atol=1e-5)


def test_weights_are_those_of_a_softmax_by_hand():
    of = case("window", dataclasses.replace(DIMS, position="none"))
    q, k, _ = (np.asarray(a, np.float64)[1] for a in of.x(0, TIME))
    for start, [read] in emitted(of):
        for t, n, r in np.argwhere(read.weight_BTNR[1] > 0):
            now = start + t
            seen = sorted(last(now, 5))
            score = k[seen, n // 2] @ q[now, n] / 2
            expected = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
            place = seen.index(now + read.position_BTNR[1, t, n, r])
            assert read.weight_BTNR[1, t, n, r] == pytest.approx(expected[place], abs=1e-6)


def test_cross_attention_reads_the_source_and_state_vectors_are_nowhere():
    [(_, [read])] = emitted(case("cross"), (TIME,))
    assert {*read.document_BTNR[read.weight_BTNR > 0]} == {SOURCE}
    assert {*read.position_BTNR[read.weight_BTNR > 0]} == {0, 1, 2}
    [(_, reads)] = emitted(case("block_recurrent"), (TIME,))
    assert [{*read.document_BTNR[read.weight_BTNR > 0].tolist()} for read in reads] == [{OWN}, {NOWHERE}]


# --- in a model -------------------------------------------------------------------------------------------------------------


def model(stacks, **changes):
    sizes = {"vocab_size": 16, "width": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "ff_dim": 16}
    names = {name for pattern, _ in stacks for entry in pattern for name in entry.replace("*", "+").split("+")}
    memory = {name: MEMORIES[name].tiny[0] for name in [*names, *changes.values()]}
    lm = build(Model(stacks=stacks, memory=memory, **sizes, **changes))
    return lm, lm.init(jax.random.key(0)), np.arange(12)[None] % 16


def collected(lm, params, token):
    return jax.jit(collect(lm, also=KINDS))(params, token, lm.init_state(1))[1]


@pytest.mark.thorough
def test_a_model_numbers_its_layers():
    aux = collected(*model((((("window", "full")), 2), (("lstm",), 1), (("window*infini",), 1))))
    layers = [np.asarray(read.layer).tolist() for read in aux["attention/reads"]]
    assert layers == [[0, 2], [1, 3], [5], [5]]
    assert [np.asarray(gate.layer).tolist() for gate in aux["attribution/gate"]] == [[5]]
    [mix] = aux["attribution/mix"]
    assert np.asarray(mix.layer).tolist() == [5]
    np.testing.assert_allclose(mix.share_BTN, 0.5)  # gates are equal at first


@pytest.mark.thorough
def test_layers_inside_memory_tokens_do_not_say_what_they_read():
    assert not all_reads(collected(*model(((("full",), 1),), body="rmt")))


@pytest.mark.thorough
def test_attribution_costs_nothing_if_nobody_collects_it(monkeypatch):
    lm, params, token = model(((("memorizing", "xl"), 1),))
    seen, most_read = [], attention.most_read
    monkeypatch.setattr(attention, "most_read", lambda *args: seen.append(args) or most_read(*args))
    jax.make_jaxpr(lm.__call__)(params, token, lm.init_state(1))
    assert not seen
    jax.make_jaxpr(lambda *args: collect(lm, also=KINDS)(*args)[0])(params, token, lm.init_state(1))
    assert len(seen) >= 2  # control: xl, and the window of memorizing
