"""The names of a classifier's classes, as a config.json has them: `id2label`, `label2id`, `num_labels`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtx.errors import UserError, quoted

MOST = 1_000_000  # classes


def read(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in the order of the classes; where there are none, LABEL_0, LABEL_1 and so on, as transformers has it.

    `id2label` decides, then `label2id`, then `num_labels`, else there are two. UserError for numbers that are not 0, 1, 2, ...,
    for two classes of one name, and if `id2label` and `label2id` contradict each other.
    """
    count = hf.get("num_labels")
    if count is not None and (type(count) is not int or not 1 <= count <= MOST):
        raise UserError(f"num_labels should be a number from 1 to {MOST:,}, not {count!r}")
    ids, names = _pairs(hf, "id2label"), _pairs(hf, "label2id")
    by_id, numbers = {_number(id): str(name) for id, name in ids}, {str(name): _number(id) for name, id in names}
    if ids and not _plain(by_id.values()):
        if wrong := [name for id, name in by_id.items() if numbers.get(name, id) != id]:
            raise UserError(f"id2label and label2id number the labels differently: {quoted(wrong)}")
    elif names and not _plain(numbers):
        ids, by_id = names, {id: name for name, id in numbers.items()}
    if not ids:
        return tuple(f"LABEL_{i}" for i in range(count or 2))
    if sorted(by_id) != list(range(len(ids))) or len(set(by_id.values())) < len(ids):
        raise UserError(
            "id2label and label2id should number the classes 0, 1, 2, ..., each with another name, "
            f"not {quoted(f'{id}: {name}' for id, name in by_id.items())}"
        )
    return tuple(by_id[i] for i in range(len(by_id)))


def write(labels: tuple[str, ...], count: int) -> dict[str, Any]:
    """The keys of a config.json. count: of classes, where they have no names."""
    names = labels or tuple(f"LABEL_{i}" for i in range(count))
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {name: i for i, name in enumerate(names)}}


def _pairs(hf: Mapping[str, Any], key: str) -> list[tuple[Any, Any]]:
    found = hf.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{key} should map to or from names of classes, not be {quoted([found])}")
    return list(found.items())


def _number(id: Any) -> int:
    """UserError for what is no number of a class; transformers writes them as text, too."""
    if isinstance(id, bool) or not str(id).isdecimal() or len(str(id)) > 9:
        raise UserError(f"id2label and label2id should number the classes 0, 1, 2, ...; {quoted([id])} is no such number")
    return int(id)


def _plain(names) -> bool:
    return sorted(names) == sorted(f"LABEL_{i}" for i in range(len(names)))
