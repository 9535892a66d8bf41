"""The names of a classifier's classes in a config.json: `id2label`, `label2id` and `num_labels`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtx.errors import UserError, quoted

MOST = 1_000_000  # classes


def read(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in the order of the classes. The default names are LABEL_0, LABEL_1, ..., as in transformers.

    `id2label` takes precedence over `label2id`, and `label2id` over `num_labels`. The default is two classes. Raises UserError
    if
    the numbers are not 0, 1, 2, ..., if two classes have the same name, or if `id2label` contradicts `label2id`.
    """
    count = hf.get("num_labels")
    if count is not None and (type(count) is not int or not 1 <= count <= MOST):
        raise UserError(f"num_labels must be a number from 1 to {MOST:,}, not {count!r}")
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
            "id2label and label2id must number the classes 0, 1, 2, ..., each with a different name, "
            f"not {quoted(f'{id}: {name}' for id, name in by_id.items())}"
        )
    return tuple(by_id[i] for i in range(len(by_id)))


def write(labels: tuple[str, ...], count: int) -> dict[str, Any]:
    """Return the fields of a config.json. count: the number of classes, used if they have no names."""
    names = labels or tuple(f"LABEL_{i}" for i in range(count))
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {name: i for i, name in enumerate(names)}}


def _pairs(hf: Mapping[str, Any], key: str) -> list[tuple[Any, Any]]:
    found = hf.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{key} must be an object that maps names of classes to or from numbers, not {quoted([found])}")
    return list(found.items())


def _number(id: Any) -> int:
    """Return the number of a class, which transformers may write as text. Raises UserError for anything else."""
    if isinstance(id, bool) or not str(id).isdecimal() or len(str(id)) > 9:
        raise UserError(f"id2label and label2id must number the classes 0, 1, 2, ..., not {quoted([id])}")
    return int(id)


def _plain(names) -> bool:
    return sorted(names) == sorted(f"LABEL_{i}" for i in range(len(names)))
