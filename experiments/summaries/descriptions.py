"""Pairs of a long description and a synopsis of Debian packages, from apt's Translation-en.

A pair is left out unless it has LENGTH words in the description and SYNOPSIS words in the synopsis. Packages of a family are in
the same split: those with a source package, the first FIRST words of a description or a synopsis in common, and those connected
by others. Valid and test have one package of each family, so no family counts more than once.

    python experiments/summaries/descriptions.py        fetches the texts, once, before the runs
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from memtx.errors import UserError
from memtx.files.cache import built, root

FOLDER = "~/.cache/memtx/derived/descriptions_of_26_to_42_words"
LISTS = "MEMTX_APT_LISTS"  # a folder with a *_Translation-en and its *_Packages, to use those instead of the newest ones
LENGTH, SYNOPSIS, FIRST = range(26, 43), range(3, 11), 8
HELD_OUT = 20  # of so many families, one is for validation and one for testing

Fields = dict[str, str]


def write(folder: Path) -> None:
    """Write the pairs in the format of configs/seq2seq.py, and origin.json with the sha256 of apt's files."""
    with TemporaryDirectory() as temporary:
        lists = Path(os.environ[LISTS]) if os.environ.get(LISTS) else _update(Path(temporary))
        _write(folder, lists)


def _write(folder: Path, lists: Path) -> None:
    files = {kind: _largest(lists, kind) for kind in ("Translation-en", "Packages")}
    source_of = {fields["Package"]: fields.get("Source", fields["Package"]).split()[0] for fields in stanzas(files["Packages"])}
    found = {}
    for fields in stanzas(files["Translation-en"]):
        synopsis, body = parts(fields["Description-en"])
        if len(body.split()) in LENGTH and len(synopsis.split()) in SYNOPSIS:
            found.setdefault(body, (fields["Package"], synopsis))  # the same text of several packages is one
    rows = [(name, body, synopsis) for body, (name, synopsis) in found.items()]
    lines = {side: [] for side in ("train", "valid", "test")}
    for family in families(rows, source_of):
        side = {0: "valid", 1: "test"}.get(_number(min(family)[0]) % HELD_OUT, "train")
        kept = family if side == "train" else [min(family, key=lambda row: _number(row[0]))]
        lines[side] += [json.dumps({"source": body, "target": synopsis, "package": name}) for name, body, synopsis in kept]
    for side, written in lines.items():
        Random(side).shuffle(written)
        (folder / f"{side}.jsonl").write_text("\n".join(written) + "\n")
    (folder / "origin.json").write_text(json.dumps({kind: [file.name, _sha256(file)] for kind, file in files.items()}))


def stanzas(file: Path) -> Iterator[Fields]:
    """Yield the fields of each paragraph of a Debian control file. Continuation lines keep their first space."""
    for paragraph in file.read_text(encoding="utf-8").split("\n\n"):
        fields, key = {}, ""
        for line in paragraph.splitlines():
            if line[:1] == " ":
                fields[key] += f"\n{line}"
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if "Package" in fields:
            yield fields


def parts(description: str) -> tuple[str, str]:
    """Return the synopsis of a description, and its body on one line."""
    synopsis, _, body = description.partition("\n")
    return " ".join(synopsis.split()), " ".join(word for line in body.splitlines() if line != " ." for word in line.split())


def families(rows: list[tuple[str, str, str]], source_of: dict[str, str]) -> list[list[tuple[str, str, str]]]:
    """Return the rows (package, body, synopsis) by family."""
    root_of = list(range(len(rows)))

    def root(i: int) -> int:
        while root_of[i] != i:
            root_of[i] = i = root_of[root_of[i]]
        return i

    first: dict[tuple, int] = {}
    for i, (name, body, synopsis) in enumerate(rows):
        begin = tuple(body.lower().split()[:FIRST])
        for key in (("source", source_of.get(name, name)), ("body", begin), ("synopsis", synopsis.lower())):
            root_of[root(i)] = root(first.setdefault(key, i))
    found: dict[int, list] = {}
    for i, row in enumerate(rows):
        found.setdefault(root(i), []).append(row)
    return [*found.values()]


def _update(folder: Path) -> Path:
    """Download apt's lists with its own sources into a folder, without a change to those of the system."""
    lists = folder / "lists"
    for part in (lists, folder / "archives"):
        (part / "partial").mkdir(parents=True)
    options = {
        "Dir::State::lists": lists,
        "Dir::Cache": folder,
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "",
    }
    command = ["apt-get", "update", *(f"-o{key}={value}" for key, value in options.items())]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise UserError(
            f"cannot fetch apt's lists ({' '.join(reason.split())}); set {LISTS} to a folder that has them"
        ) from None
    return lists


def _largest(lists: Path, kind: str) -> Path:
    found = sorted(lists.glob(f"*_{kind}"), key=lambda file: file.stat().st_size)
    if not found:
        raise UserError(f"{lists} has no file *_{kind}; run it where apt has Debian sources, or set {LISTS}")
    return found[-1]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


if __name__ == "__main__":
    print((built(root(FOLDER), write) / "origin.json").read_text())
