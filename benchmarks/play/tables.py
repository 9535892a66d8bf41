"""Tables and a figure of the results of run.py.

A result is a reader's calls, each with its tokens, nats, CPU seconds and resident memory.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

CALL, PARTS = 512, 6  # tokens of a call; parts of the play in the table


def show(results: dict[str, dict]) -> str:
    """Return the tables of results and of gains by position, in Markdown.

    Readers that read only the beginning get a line with their largest difference from the reader that they are compared to.
    """
    whole = {name: row for name, row in results.items() if len(row["calls"]) == max(len(r["calls"]) for r in results.values())}
    tokens = np.array([call["tokens"] for call in next(iter(whole.values()))["calls"]])
    edges = np.linspace(0, len(tokens), PARTS + 1).round().astype(int)
    starts = np.concatenate([[0], tokens.cumsum()])[edges] / 1000
    lines = [
        "| reads with | perplexity | bits per byte | nats per token | state, MiB | tokens per CPU second "
        "| resident MiB after a sixth, at the end |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in whole.items():
        nats, calls = nats_of(row), row["calls"]
        memory = f"{calls[edges[1] - 1]['resident_mib']:,.0f}, {calls[-1]['resident_mib']:,.0f}"
        rate = CALL / np.median([call["cpu_s"] for call in calls[1:-1]])
        loss, bits = nats.sum() / tokens.sum(), nats.sum() / np.log(2) / row["bytes"]
        size = row["state_bytes"] / 2**20
        lines.append(f"| {name} | {np.exp(loss):.2f} | {bits:.4f} | {loss:.4f} | {size:.1f} | {rate:.0f} | {memory} |")
    spans = [f"{a:.0f}-{b:.0f}k" for a, b in pairwise(starts)]
    lines += ["", f"| gain, nats per token | whole play | {' | '.join(spans)} |", "|---|---:|" + "---:|" * PARTS]
    for name, base in compared(whole):
        gains = (nats_of(whole[base]) - nats_of(whole[name])) / tokens
        cells = [mean_and_error(gains[a:b], tokens[a:b]) for a, b in [(0, len(tokens)), *pairwise(edges)]]
        lines.append(f"| {name}, over {base} | {' | '.join(cells)} |")
    for name, base in compared(results):
        if name not in whole:
            count = len(results[name]["calls"])
            apart = np.abs(nats_of(results[name]) - nats_of(results[base])[:count]).max() / CALL
            lines += ["", f"{name}: {count} calls, at most {apart:.1g} nats per token from {base}"]
    return "\n".join(lines)


def nats_of(row: dict) -> np.ndarray:
    """Return the nats of each call."""
    return np.array([call["nats"] for call in row["calls"]])


def compared(results: dict) -> list[tuple[str, str]]:
    """Return pairs of a reader's name and the name of the reader that it is compared to."""
    return [(name, row["base"]) for name, row in results.items() if row["base"] != name and row["base"] in results]


def mean_and_error(gains: np.ndarray, tokens: np.ndarray) -> str:
    """Format the mean of the gains, weighted by the tokens of each call, and its standard error."""
    weight = tokens / tokens.sum()
    mean = (gains * weight).sum()
    return f"{mean:+.3f} ± {np.sqrt((weight**2 * (gains - mean) ** 2).sum()):.3f}"


def draw(results: dict[str, dict], path: Path) -> None:
    """Plot the gain by position in the play, in means over four calls."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, base in compared(results):
        gain = (nats_of(results[base])[: len(results[name]["calls"])] - nats_of(results[name])) / CALL
        four = gain[: len(gain) // 4 * 4].reshape(-1, 4).mean(1)
        axes.plot(4 * CALL * (np.arange(len(four)) + 0.5), four, "o-", markersize=3, label=f"{name}, over {base}")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="position in the play (tokens)", ylabel="gain (nats per token)")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
