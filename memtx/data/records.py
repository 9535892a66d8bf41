"""Records of documents, written and read by tensorflow_datasets as ArrayRecord, without TensorFlow."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from filelock import FileLock

from memtx.data.folder import decode
from memtx.errors import UserError, check_known
from memtx.files.cache import digest
from memtx.progress import counted

FORMAT = "array_record"
TEXT_FEATURES = ("text", "document", "article", "content", "story", "body", "passage", "sentence", "review", "abstract")


@dataclass(eq=False)
class FilesConfig(tfds.core.BuilderConfig):
    """The files of each split, with their document ids."""

    files: dict[str, list[tuple[str, Path | zipfile.Path]]] = field(default_factory=dict, repr=False)


class MemtxText(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder that makes a document of each text file."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        assert isinstance(self.builder_config, FilesConfig)
        return {split: self._generate_examples(files, split) for split, files in self.builder_config.files.items()}

    def _generate_examples(self, files, split):
        for number, (id, file) in enumerate(counted(files, "document", len(files), f"writing {split}")):
            yield number, {"id": id, "text": decode(file.read_bytes())}


def write(folder: Path, files: dict[str, list[tuple[str, Path | zipfile.Path]]]) -> None:
    """Write a dataset of the files of each split, with their document ids, into `folder`."""
    with _quiet():
        builder = MemtxText(config=FilesConfig(name="files", files=files), data_dir=folder)
        builder.download_and_prepare(file_format=FORMAT)


def read(folder: Path, split: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of each document of a TFDS split, in the order of the records. name: the corpus, for errors."""
    builder = _builder(folder)
    feature = _text_feature(name, builder.info.features)
    examples = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]  (TFDS decorates its signature away)
    for number, example in enumerate(examples):
        id = example["id"].decode() if isinstance(example.get("id"), bytes) else f"{split}/{number}"
        if text := example[feature].decode("utf-8", errors="replace"):
            yield id, text


def count(folder: Path, split: str) -> int:
    """Return the number of records of a TFDS split."""
    return _builder(folder).info.splits[split].num_examples


def catalogue(argument: str, cache: Path) -> dict[str, Any]:
    """Return the fields of the Corpus for `NAME[:CONFIG]` of the TFDS catalogue, in the data folder of TFDS ($TFDS_DATA_DIR).

    The dataset is prepared there if necessary. If splits are missing, they are cut from the end of the train split. Raises
    UserError if the dataset is unknown, cannot be prepared, has no text, or was prepared in a format that needs TensorFlow.
    """
    name = f"tfds:{argument}"
    builder = _prepared(argument, cache)
    _text_feature(name, builder.info.features)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    splits = _slices(sizes)
    for split in ("train", "valid"):
        if not builder.info.splits[splits[split]].num_examples:
            raise UserError(f"corpus {name} has too few documents to split: {sizes}")
    bytes_ = {split: info.num_bytes for split, info in builder.info.splits.items()}
    fingerprint = digest(builder.info.full_name, sizes, bytes_, splits)
    about = f"{builder.info.full_name} of the TFDS catalogue; see there for its licence"
    return {"name": name, "about": about, "path": Path(builder.data_dir), "fingerprint": fingerprint, "splits": splits}


def _prepared(argument: str, cache: Path) -> tfds.core.DatasetBuilder:
    name, _, config = argument.partition(":")
    try:
        builder = tfds.builder(f"{name}/{config}" if config else name, data_dir=os.environ.get("TFDS_DATA_DIR"))
        if not builder.is_prepared():
            cache.mkdir(parents=True, exist_ok=True)
            # TFDS moves the finished folder into place, but fails if another process did so first.
            with FileLock(cache / "tfds.lock"), contextlib.redirect_stdout(sys.stderr):
                builder.download_and_prepare(file_format=FORMAT)
        builder.as_data_source("train[:1]")  # pyright: ignore[reportCallIssue]
    except tfds.core.DatasetNotFoundError as error:
        check_known(name, tfds.list_builders(with_community_datasets=False), "dataset of the TFDS catalogue")
        raise UserError(f"cannot open tfds:{argument}: {_one_line(error)}") from error
    except Exception as error:  # datasets fail in many ways: no network, no TensorFlow, another file format
        raise UserError(f"cannot prepare tfds:{argument}: {_one_line(error)}") from error
    return builder


def _builder(folder: Path):
    return tfds.builder_from_directory(next(folder.rglob("dataset_info.json")).parent)


def _slices(sizes: dict[str, int]) -> dict[str, str]:
    """Return our three splits as slices of the splits of the dataset."""
    valid = next((split for split in ("validation", "valid", "dev") if split in sizes), None)
    test = "test" if "test" in sizes else None
    if valid and test:
        return {"train": "train", "valid": valid, "test": test}
    if valid or test:
        return {"train": "train[:95%]", "valid": valid or "train[95%:]", "test": test or "train[95%:]"}
    return {"train": "train[:90%]", "valid": "train[90%:95%]", "test": "train[95%:]"}


def _text_feature(name: str, features) -> str:
    texts = [key for key, feature in dict(features).items() if isinstance(feature, tfds.features.Text) and key != "id"]
    for key in (*TEXT_FEATURES, *(texts if len(texts) == 1 else ())):
        if key in texts:
            return key
    raise UserError(f"corpus {name} has no text feature; it has {', '.join(sorted(features))}")


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 300) or type(error).__name__


@contextlib.contextmanager
def _quiet():
    """Silence TFDS, which writes to stdout and to the log, and shows three progress bars."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        tfds.enable_progress_bar()
        log.setLevel(level)
