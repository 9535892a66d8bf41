import cProfile
import dataclasses
import pstats

import jax
import numpy as np
import pytest

from memtx.data.corpora import load_corpus
from memtx.data.streams import Batch, Stream
from memtx.data.tokenizers import make_tokenizer
from memtx.data.tokens import tokenize
from memtx.errors import UserError
from tests.cursors import goes_on, rows_of, same

LENGTHS = [5, 1, 17, 8, 30, 3, 16, 12, 2, 9]


def calls(batch: Batch):
    """Each call of each row, in order: (row, fields of that row and segment)."""
    rows, segments = batch.length_BP.shape
    for p in range(segments):
        for b in range(rows):
            yield (
                b,
                {
                    f.name.rsplit("_", 1)[0]: getattr(batch, f.name)[b, p]
                    for f in dataclasses.fields(batch)
                    if f.name != "shared"
                },
            )


def read(batches):
    """Follow every row and put its documents together: [(index, inputs, targets)], finished and open ones. Checks each call."""
    open_, done = {}, []
    for batch in batches:
        for row, call in calls(batch):
            n = int(call["length"])
            assert not call["token"][n:].any()
            assert not call["target"][n:].any()
            if n == 0:
                assert not call["reset"]
                assert call["document"] == -1
                continue
            if call["reset"]:
                if row in open_:
                    done.append(open_.pop(row))
                open_[row] = (int(call["document"]), [], [])
            document, inputs, targets = open_[row]
            assert document == call["document"]
            assert call["position"][:n].tolist() == list(range(len(inputs), len(inputs) + n))
            inputs.extend(call["token"][:n].tolist())
            targets.extend(call["target"][:n].tolist())
    return done, list(open_.values())


@pytest.mark.parametrize(("batch", "segments", "time"), [(1, 1, 1), (3, 2, 4), (4, 3, 7), (2, 1, 100), (16, 2, 4)])
def test_rows_give_the_documents_back_exactly_once_an_epoch(numbered, batch, segments, time):
    tokens = numbered(LENGTHS)
    stream = Stream(tokens, (batch, segments, time), seed=1, repeat=False)
    done, last = read(stream)
    found = sorted(done + last)
    assert [index for index, _, _ in found] == list(range(len(LENGTHS)))
    for index, inputs, targets in found:
        document = tokens.document(index).tolist()
        assert inputs == [tokens.bos, *document]
        assert targets == [*document, tokens.bos]
    assert sum(len(targets) for _, _, targets in found) == (tokens.length_D + 1).sum()
    with pytest.raises(StopIteration):
        next(stream)


def test_real_text_comes_back_through_the_stream(small, cache):
    tok = make_tokenizer("bpe:400", small, cache)
    tokens = tokenize(small, tok, "train", cache)
    done, last = read(Stream(tokens, (4, 2, 64), repeat=False))
    texts = dict(small.documents("train"))
    assert {tokens.names[index]: tok.decode(targets) for index, _, targets in done + last} == texts


def test_epochs_run_on_and_hold_every_document_once(numbered):
    tokens = numbered(LENGTHS)
    stream = Stream(tokens, (3, 2, 4), seed=3)
    starts = []
    while stream.epoch < 3:
        starts += [int(call["document"]) for _, call in calls(next(stream)) if call["reset"]]
    epochs = [starts[i : i + len(LENGTHS)] for i in range(0, 3 * len(LENGTHS), len(LENGTHS))]
    assert all(sorted(epoch) == list(range(len(LENGTHS))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rows_go_on_from_batch_to_batch_and_are_never_idle_when_endless(numbered):
    stream = Stream(numbered([2]), (5, 2, 4))  # fewer documents than rows
    for _ in range(4):
        assert next(stream).length_BP.all()


def test_the_seed_gives_the_order_and_no_shuffle_the_corpus_order(numbered):
    def order(**options):
        stream = Stream(numbered([1] * 50), (1, 50, 2), **options)
        return next(stream).document_BP[0].tolist()

    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert order(shuffle=False) == list(range(50))
    # Written down once: the order must not change with NumPy's version, or no saved cursor could go on.
    assert order(seed=1)[:6] == [9, 36, 39, 31, 16, 2]


def test_batches_have_the_declared_shapes_and_types(numbered):
    batch = next(Stream(numbered(LENGTHS), (4, 3, 5), rows=[1, 2]))
    assert [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch)] == [
        *[((2, 3, 5), "int32")] * 3,
        ((2, 3), "int32"),
        ((2, 3), "bool"),
        ((2, 3), "int32"),
    ]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_hold_the_rows_of_one_process_in_order(numbered, processes):
    def make(index, count):
        return Stream(numbered(LENGTHS), (4, 2, 4), rows=rows_of(4, index, count))

    whole, parts = make(0, 1), [make(i, processes) for i in range(processes)]
    for _ in range(12):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *[next(part) for part in parts])
        assert same(joined, next(whole))
    assert all(part.get_state() == whole.get_state() for part in parts)


def test_a_cursor_goes_on_exactly_on_another_number_of_processes(numbered):
    def make(index, count):
        return Stream(numbered(LENGTHS), (4, 2, 4), seed=5, rows=rows_of(4, index, count))

    def see(state):
        assert any(offset > 0 for offset in state["offset"])  # the control: a restart in mid-document

    reference = goes_on(make, [(1, 3), (2, 4), (4, 9), (1, 14)], see)
    assert reference.epoch > 1  # epochs were crossed


def test_a_finished_stream_stays_finished_after_a_restore(numbered):
    def make():
        return Stream(numbered([3, 3]), (4, 2, 8), repeat=False)

    stream = make()
    assert len(list(stream)) == 1
    again = make()
    again.set_state(stream.get_state())
    assert list(again) == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"shuffle": False}, {"tokens": "other"}])
def test_a_cursor_of_other_data_is_refused(numbered, change):
    options = {"seed": 0, "shuffle": True} | change
    tokens = numbered(LENGTHS, options.pop("tokens", "numbered"))
    other = Stream(tokens, (4, 2, 4), **options)
    before = other.get_state()
    with pytest.raises(UserError, match=f"place in the data has {next(iter(change))}"):
        other.set_state(Stream(numbered(LENGTHS), (4, 2, 4)).get_state())
    assert other.get_state() == before


@pytest.mark.parametrize("damage", [{"offset": None}, {"offset": [1]}, {"taken": "x"}])
def test_a_damaged_cursor_is_refused(numbered, damage):
    stream = Stream(numbered(LENGTHS), (4, 2, 4))
    with pytest.raises(UserError, match="damaged"):
        stream.set_state(stream.get_state() | damage)


def test_with_another_batch_the_first_rows_continue_and_new_rows_start_documents(numbered):
    def of(batch):
        return Stream(numbered(LENGTHS), (batch, 1, 4), seed=5)

    four, more, fewer = of(4), of(6), of(2)
    for _ in range(3):
        next(four)
    cursor = four.get_state()
    assert sum(offset > 0 for offset in cursor["offset"][:2]) == 2  # both are in the middle of a document
    more.set_state(cursor)
    fewer.set_state(cursor)
    expected, wide, narrow = next(four), next(more), next(fewer)
    for batch, rows in ((wide, 2), (narrow, 2)):
        continued = jax.tree.map(lambda a: a[:rows], (expected, batch))  # noqa: B023
        kept = ~continued[0].reset_BP
        for ours, theirs in zip(*map(jax.tree.leaves, continued), strict=True):
            np.testing.assert_array_equal(ours[kept[:, 0]], theirs[kept[:, 0]])
        assert kept.any()
    assert wide.reset_BP[4:].all()
    assert (wide.document_BP[4:] >= 0).all()
    assert narrow.token_BPT.shape[0] == 2


@pytest.mark.parametrize(("batch", "options", "says"), [(0, {}, "positive"), (4, {"seed": -1}, "seed")])
def test_sizes_that_cannot_be_are_user_errors(numbered, batch, options, says):
    with pytest.raises(UserError, match=says):
        Stream(numbered(LENGTHS), (batch, 2, 4), **options)


def test_the_work_of_a_batch_does_not_go_token_by_token(cache):
    code = load_corpus("pycode", cache)
    stream = Stream(tokenize(code, make_tokenizer("bytes", code, cache), "train", cache), (64, 4, 512))
    next(stream)
    with cProfile.Profile() as profile:
        tokens = sum(next(stream).token_BPT.size for _ in range(5))
    assert pstats.Stats(profile).total_calls < tokens / 100
