"""The table of mechanisms, from stored results: python experiments/mechanisms/table.py writes README.md between its marks."""

import json
import re
import statistics
from pathlib import Path

from columns import COLUMNS

from memtx.memory import MEMORIES

FOLDER = Path(__file__).parent


def results(memory: str, column: str) -> list[dict]:
    """Of all seeds, in their order."""
    return [json.loads(path.read_text()) for path in sorted((FOLDER / "results" / memory).glob(f"{column}-*.json"))]


def spread(values: list[float], digits: int) -> str:
    """mean ± standard deviation (number of seeds); a single seed has no spread."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else f"{mean} (1)"


def row(memory: str) -> list[str]:
    cells = [memory]
    sizes = results(memory, "books")  # of one model size for all
    for key in ("parameters", "state_bytes", "flops_per_token"):
        cells.append(f"{sizes[0][key]:,}" if sizes else "")
    cells.append(spread([result["train_tokens_per_s"] for result in results(memory, "books")], 0))
    for name, column in COLUMNS.items():
        found = results(memory, name)
        for metric in column.numbers.values():
            cells.append(spread([result["eval"][metric] for result in found], 3 if name == "books" else 2))
    return cells


def table() -> str:
    measured = [heading for column in COLUMNS.values() for heading in column.numbers]
    head = ["mechanism", "parameters", "state bytes", "FLOPs a token", "tokens/s, training", *measured]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)] + [row(memory) for memory in MEMORIES]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines if any(line[1:]))


if __name__ == "__main__":
    readme = FOLDER / "README.md"
    text = readme.read_text()
    marked = re.compile(r"(<!-- table -->\n).*?(\n<!-- end -->)", re.DOTALL)
    readme.write_text(marked.sub(lambda m: m[1] + table() + m[2], text))
    print(table())
