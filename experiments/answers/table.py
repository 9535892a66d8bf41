"""The tables of README.md by number of words, from the stored results.

    python experiments/answers/table.py
    python experiments/answers/table.py --runs=runs/answers

The first command prints F1, exact match and the share of documents found. The second prints three questions of each kind, with
sources and answers.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from memtx import reports
from memtx.sweep.spec import load_sweep

HERE = Path(__file__).parent
STUDY = load_sweep(HERE / "sweep.py").module
SHOWN, WORDS = 3, 8000  # examples of each kind, of texts of so many words


def markdown() -> str:
    """Return a table for each kind of text: the mean over seeds of F1 and, in brackets, of exact match."""
    runs = reports.from_results(HERE / "results")

    def cell(kind: str, way: str, words: int, metric: str) -> str:
        return f"{mean(run.result[STUDY.column(kind, way, words, metric)] for run in runs):.2f}"

    tables = []
    for kind, name in STUDY.KINDS.items():
        lines = [
            f"| {name} | {' | '.join(f'{words:,} words' for words in STUDY.LENGTHS)} |",
            "|---|" + "---:|" * len(STUDY.LENGTHS),
        ]
        for way in ("oracle", *STUDY.WAYS):
            cells = [f"{cell(kind, way, words, 'f1')} ({cell(kind, way, words, 'exact_match')})" for words in STUDY.LENGTHS]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        lines.append(
            f"| memory has the document | {' | '.join(cell(kind, 'memory', words, 'found') for words in STUDY.LENGTHS)} |"
        )
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def examples(runs: Path) -> str:
    """Return a table of the first questions of seed 0: sources and answer with the memory, and both after forgetting."""
    lines = ["| question | right | sources | answer | sources after forgetting | answer |", "|---|---|---|---|---|---|"]
    folder = next(folder for folder in sorted((runs / "runs").iterdir()) if folder.name.startswith("seed=0"))
    for kind in STUDY.KINDS:
        rows = json.loads((folder / f"answers_{kind}.json").read_text())
        for number, asked in enumerate(STUDY.tested(kind, 0)[1][:SHOWN]):
            mine = {row["way"]: row for row in rows if row["number"] == number and row["words"] == WORDS}
            cells = [asked.question, " / ".join(dict.fromkeys(text for text, _ in asked.answers))]
            for way in ("memory", "forgotten"):
                cells += [", ".join(dict.fromkeys(mine[way]["sources"])), mine[way]["answer"].replace("\n", " ")]
            lines.append("| " + " | ".join(cells).replace("\n", " ") + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    args = parser.parse_args()
    print(examples(args.runs) if args.runs else markdown())
