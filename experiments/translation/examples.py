"""Print the translations that the README shows, unselected: `python experiments/translation/examples.py WORKDIR`.

WORKDIR is that of the sweep. All are from seed 0.
"""

import json
import sys
from itertools import islice
from pathlib import Path

FIRST = 20  # verses of the T5
CHANGED = 3  # verses of a chapter whose translation changes if the text before them is forgotten


def find(workdir: Path, memory: str, turns: int | None) -> dict:
    """Return the translations of seed 0 of a memory and a number of turns."""
    for file in sorted(workdir.glob("runs/*/translations.json")):
        config = json.loads((file.parent / "config.json").read_text())
        task = config["data"]["task"]
        if config["seed"] == 0 and task.get("turns") == turns and (memory in config["memory"] or turns is None):
            return json.loads(file.read_text())
    raise SystemExit(f"{workdir} has no finished run of {memory}")


def main(workdir: Path, memory: str) -> None:
    """Print both lists as Markdown."""
    verses = find(workdir, "", None)
    print("| English | Spanish (1909) | T5 |\n| --- | --- | --- |")
    for (english, spanish), text in islice(zip(verses["verses"], verses[""], strict=True), FIRST):
        print(f"| {english} | {spanish} | {text} |")
    found = find(workdir, memory, 0)
    rows = zip(found["verses"], found[""], found["/wiped"], found["/wrong"], strict=True)
    changed = [row for row in rows if row[1] != row[2]]
    print(f"\n{len(changed)} of {len(found[''])} translations change.\n")
    for (english, spanish), carried, wiped, wrong in changed[:CHANGED]:
        lines = {"English": english, "1909": spanish, "carried": carried, "forgotten": wiped, "another chapter": wrong}
        print("\n".join(f"- {name}: {text}" for name, text in lines.items()), end="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "window")
