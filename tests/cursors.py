"""What every stream of batches must do with its cursor."""

import json

import jax
import numpy as np

from memtx.data.streams import Batch


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def rows_of(batch: int, index: int, count: int) -> range:
    """The rows of one of `count` processes that share a batch evenly."""
    return range(index * batch // count, (index + 1) * batch // count)


def goes_on(make, legs, see=lambda state: None):
    """Reads batches in legs of (processes, steps), handing the cursor on as JSON, and checks each against one undisturbed
    stream, which it returns. make(process_index, process_count) -> stream; see(state) is called at each restart."""
    reference = make(0, 1)
    batches = [next(reference) for _ in range(sum(steps for _, steps in legs))]
    state, at = None, 0
    for processes, steps in legs:
        parts = [make(i, processes) for i in range(processes)]
        if state:
            see(state)
            assert not same(next(make(0, 1)), batches[at])  # the control: a stream begun anew would show
            for part in parts:
                part.set_state(state)
        for batch in batches[at : at + steps]:
            assert same(jax.tree.map(lambda *rows: np.concatenate(rows), *[next(part) for part in parts]), batch)
        at += steps
        states = [json.loads(json.dumps(part.get_state())) for part in parts]
        assert all(s == states[0] for s in states)
        state = states[0]
    return reference
