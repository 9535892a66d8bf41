"""Batches of examples: cuts, cursors, processes and curricula."""

import jax
import numpy as np
import pytest

from memtx.errors import UserError
from memtx.tasks import TASKS
from memtx.tasks.stream import Examples
from tests.cursors import goes_on, rows_of

LINES = ("token_BPT", "target_BPT", "position_BPT")


def task(name, **settings):
    return TASKS[name](TASKS[name].Config(**settings))


def make(stages=None, *, batch=4, segments=2, time=32, **options):
    stages = stages or [(0, task("phonebook", entries=3))]
    return Examples(stages, (batch, segments, time), **options)


def read(batches, rows: int) -> list[list[dict]]:
    """The examples that each row read, put together again from the calls that are not empty."""
    out = [[] for _ in range(rows)]
    for batch in batches:
        for b, p in np.ndindex(batch.length_BP.shape):
            if batch.reset_BP[b, p]:
                out[b].append({"source": int(batch.document_BP[b, p]), **{name: [] for name in LINES}})
            for name in LINES:
                if batch.length_BP[b, p]:
                    out[b][-1][name] += getattr(batch, name)[b, p, : batch.length_BP[b, p]].tolist()
    return out


@pytest.mark.parametrize(("segments", "time"), [(1, 8), (2, 32), (3, 50), (12, 16)])
def test_rows_read_whole_examples_one_after_another(segments, time):
    phonebook = task("phonebook", entries=3)
    stream = make([(0, phonebook)], segments=segments, time=time)
    calls = -(-phonebook.length // time)
    steps = -(-calls // segments)
    for b, examples in enumerate(read([next(stream) for _ in range(3 * steps)], 4)):
        assert [example["source"] for example in examples] == [b, b + 4, b + 8]
        for example in examples:
            drawn = phonebook.draw(0, "train", example["source"])
            assert example["token_BPT"] == drawn.token_L.tolist()
            assert example["target_BPT"] == drawn.label_L.tolist()
            assert example["position_BPT"] == list(range(len(drawn.token_L)))


def test_labels_are_the_only_places_that_count():
    batch = next(make([(0, task("mqar", length=64, pairs=4))], segments=1, time=100))
    assert batch.labelled_BPT.sum() == 4 * 4
    assert (batch.target_BPT[batch.labelled_BPT] >= 4096).all()
    assert (batch.target_BPT[~batch.labelled_BPT] == -1).all()
    assert batch.length_BP.tolist() == [[64]] * 4


def test_batches_have_the_shapes_and_types_of_text():
    batch = next(make(batch=6, segments=3, time=7, rows=[0, 2, 5]))
    assert [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch)] == [
        *[((3, 3, 7), "int32")] * 3,
        ((3, 3), "int32"),
        ((3, 3), "bool"),
        ((3, 3), "int32"),
    ]


def test_a_task_of_blocks_takes_one_block_a_call():
    associative = task("associative", pairs=3, vary=False)
    batch = next(make([(0, associative)], segments=4, time=9))
    assert batch.length_BP.tolist() == [[4, 4, 4, 3]] * 4
    words = [associative.tokenizer.decode(batch.token_BPT[0, p, : batch.length_BP[0, p]]).split() for p in range(4)]
    assert [block[1] for block in words] == ["sep", "sep", "sep", "gen"]
    assert batch.position_BPT[0, :, 0].tolist() == [0, 4, 8, 12]
    with pytest.raises(UserError, match="shorter than a block"):
        make([(0, associative)], time=3)


CURRICULUM = [
    (3, task("associative", pairs=1)),
    (4, task("associative", pairs=2, key_size=2)),
    (0, task("associative", pairs=10, key_size=2)),
]


def test_a_curriculum_changes_with_the_step_and_a_stage_has_no_empty_calls():
    stream = make(CURRICULUM, segments=11, time=5)
    batches = [next(stream) for _ in range(12)]
    assert [batch.token_BPT.shape[1] for batch in batches] == [2] * 3 + [3] * 4 + [11] * 5
    assert all({leaf.shape[1] for leaf in jax.tree.leaves(batch)} == {batch.token_BPT.shape[1]} for batch in batches)
    pairs = [int((batch.length_BP > 0).sum(1).max()) - 1 for batch in batches]
    assert pairs[:3] == [1, 1, 1]
    assert set(pairs[3:7]) <= {1, 2}
    assert max(pairs[3:7]) == 2
    assert max(pairs[7:]) > 5
    widths = [int(batch.length_BP.max()) for batch in batches]
    assert widths == [4] * 3 + [5] * 9
    assert all(batch.reset_BP[:, 0].all() for batch in batches)  # 11 segments hold a whole example
    assert all((batch.labelled_BPT.sum((1, 2)) == 3).all() for batch in batches)


@pytest.mark.parametrize("options", [{}, {"count": 6}, {"segments": 1, "time": 16}])
def test_a_cursor_goes_on_exactly_on_another_number_of_processes(options):
    def one(index, count):
        return make(CURRICULUM, **({"segments": 4, "time": 5} | options), seed=5, rows=rows_of(4, index, count))

    goes_on(one, [(1, 3), (2, 5), (4, 9), (1, 13)])


@pytest.mark.parametrize("change", [{"seed": 1}, {"segments": 3}, {"time": 9}, {"split": "valid"}, {"count": 7}])
def test_a_cursor_of_other_examples_is_refused(change):
    with pytest.raises(UserError, match=f"data cursor has {next(iter(change))}"):
        make(**change).set_state(make().get_state())
    with pytest.raises(UserError, match="data cursor has tasks"):
        make([(0, task("phonebook", entries=4))]).set_state(make().get_state())
    with pytest.raises(UserError, match="damaged"):
        make().set_state(make().get_state() | {"step": "x"})


def test_a_finite_set_comes_round_in_a_new_order():
    stream = make([(0, task("induction", length=8))], batch=2, segments=1, time=8, count=10)
    seen = [next(stream).document_BP.ravel().tolist() for _ in range(15)]
    epochs = np.reshape(seen, (3, 10)).tolist()
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_held_out_examples_come_once_each_and_rows_then_fall_idle():
    stream = make([(0, task("induction", length=8))], batch=4, segments=1, time=5, count=6, repeat=False, split="valid")
    batches = list(stream)
    assert len(batches) == 4  # two calls an example, two rounds
    assert [example["source"] for row in read(batches, 4) for example in row] == [0, 4, 1, 5, 2, 3]
    assert batches[-1].document_BP.ravel().tolist() == [4, 5, -1, -1]
    assert batches[-1].length_BP.ravel().tolist() == [3, 3, 0, 0]


def test_sizes_that_cannot_be_are_user_errors():
    with pytest.raises(UserError, match="positive"):
        make(batch=0)


@pytest.mark.parametrize("batch", [2, 6])
def test_with_another_batch_rows_finish_their_examples_and_rounds_go_on_without_a_gap(batch):
    def of(batch):
        return make(batch=batch, segments=1, time=16)

    old, new = of(4), of(batch)
    steps = -(-task("phonebook", entries=3).length // 16)
    assert steps > 1
    for _ in range(steps + 1):  # a round, and the first part of the next
        next(old)
    new.set_state(old.get_state())
    parts = [(next(old), next(new)) for _ in range(steps - 1)]
    for expected, found in parts:
        assert (found.token_BPT[:4] == expected.token_BPT[:batch]).all()
        assert (found.length_BP[4:] == 0).all()
        assert (found.document_BP[4:] == -1).all()
    assert sum(int(found.length_BP.sum()) for _, found in parts) > 0
    state = new.get_state()
    assert next(new).document_BP[:, 0].tolist() == list(range(8, 8 + batch))  # the old rows had read 4 to 7
    again = of(batch)
    again.set_state(state)
    assert next(again).document_BP[:, 0].tolist() == list(range(8, 8 + batch))


def test_rows_that_were_dropped_do_not_come_back_within_a_round():
    """Batches of 4, 2 and 4 rows in one round: the last two rows have nothing until the next round."""
    streams = [make(batch=batch, segments=1, time=16) for batch in (4, 2, 4)]
    steps = -(-task("phonebook", entries=3).length // 16)
    assert steps >= 4
    state, batches = None, []
    for stream, parts in zip(streams, (1, 1, steps - 2), strict=True):
        if state:
            stream.set_state(state)
        batches += [next(stream) for _ in range(parts)]
        state = stream.get_state()
    assert (batches[2].document_BP[:2, 0] == [0, 1]).all()
    assert all((batch.length_BP[2:] == 0).all() for batch in batches[2:])
    assert next(streams[2]).document_BP[:, 0].tolist() == [4, 5, 6, 7]


def test_the_cursor_of_an_older_version_goes_on_at_the_same_example():
    stream = make(segments=1, time=16)
    for _ in range(7):
        state = {key: value for key, value in stream.get_state().items() if key not in ("first", "read")}
        again = make(segments=1, time=16)
        again.set_state(state)
        assert (next(again).document_BP == next(stream).document_BP).all()
