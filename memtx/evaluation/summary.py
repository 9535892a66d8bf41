"""Tables and plots of an evaluation, with the state carried and with the state wiped."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from memtx.evaluation.perplexity import Evaluation
from memtx.evaluation.recall import Recall

FIRST = 8  # plots start here, because the high loss of a document's first tokens would hide the rest


def table(evaluation: Evaluation, title: str) -> Table:
    """Return a table of both passes over text and the gain from memory."""
    carried, wiped = evaluation.carried, evaluation.wiped
    out = Table(title=title, caption=f"{carried.bytes:,} held-out bytes, {carried.tokens:,} tokens", min_width=72)
    out.add_column("memory")
    for name in ("bits per byte", "perplexity", "nats per token"):
        out.add_column(name, justify="right")
    for name, p in (("carried", carried), ("wiped every segment", wiped)):
        out.add_row(name, f"{p.bits_per_byte:.4f}", f"{p.perplexity:.3f}", f"{p.loss:.4f}")
    gain = wiped.bits_per_byte - carried.bits_per_byte
    out.add_section()
    out.add_row("gain", f"{gain:.4f}", f"{wiped.perplexity - carried.perplexity:.3f}", f"{wiped.loss - carried.loss:.4f}")
    return out


def plot(evaluation: Evaluation, path: Path, title: str) -> None:
    """Plot the loss by position in the document and by position in the segment, and save it as a png."""
    import matplotlib  # imported here because it is slow

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (document, segment) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    styles = (("memory carried", evaluation.carried, "#1f5fa8", "-"), ("memory wiped", evaluation.wiped, "#c8552b", "--"))
    for label, p, colour, line in styles:
        shown = [(x, y) for x, y in zip(p.position, p.loss_by_position, strict=True) if x >= FIRST] or [(1, p.loss)]
        document.plot(*zip(*shown, strict=True), line, color=colour, label=label)
        position = range(1, len(p.loss_by_place) + 1)
        segment.plot(position, p.loss_by_place, line, color=colour, label=label, linewidth=1)
    document.set(xscale="log", xlabel=f"position in the document (tokens, from {FIRST} on)", ylabel="loss (nats per token)")
    segment.set(xlabel="position in the segment (tokens)", ylabel="loss (nats per token)")
    document.legend(frameon=False)
    for axes in (document, segment):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def recall_table(recall: Recall, title: str) -> Table:
    """Return a table of both passes over a task: overall, by slice, and scores of generated text."""
    carried, wiped = recall.carried, recall.wiped
    caption = f"{recall.examples:,} held-out examples, {recall.labels:,} labels"
    caption += f"\nBLEU: {recall.signature}" if recall.signature else ""
    out = Table(title=title, caption=caption, min_width=60)
    out.add_column("accuracy")
    for name in ("source read", "no source") if "bits_per_byte" in recall.text else ("memory carried", "wiped every segment"):
        out.add_column(name, justify="right")
    for name, of in (("labels", "accuracy"), ("whole examples", "exact"), ("nats per label", "loss")):
        out.add_row(name, f"{getattr(carried, of):.4f}", f"{getattr(wiped, of):.4f}")
    out.add_section()
    for name, value in carried.by_slice.items():
        out.add_row(name, f"{value:.4f}", f"{wiped.by_slice[name]:.4f}")
    out.add_section()
    for name in (name for name in recall.text if not name.endswith("_wiped")):
        both = [recall.text.get(key) for key in (name, f"{name}_wiped")]
        out.add_row(name.replace("_", " "), *("" if value is None else f"{value:.4f}" for value in both))
    return out


def recall_plot(recall: Recall, path: Path, title: str) -> None:
    """Plot the accuracy by slice, one panel per kind of slice, and save it as a png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name.partition("=")[0] for name in recall.carried.by_slice))
    figure, axes = plt.subplots(
        1, max(len(names), 1), figsize=(4 * max(len(names), 1), 3.4), layout="constrained", squeeze=False
    )
    for panel, name in zip(axes[0], names, strict=False):
        for label, score, colour, line in (
            ("carried", recall.carried, "#1f5fa8", "o-"),
            ("wiped", recall.wiped, "#c8552b", "s--"),
        ):
            found = {key.partition("=")[2]: value for key, value in score.by_slice.items() if key.partition("=")[0] == name}
            panel.plot(list(found), list(found.values()), line, color=colour, label=f"memory {label}", markersize=4)
        panel.set(xlabel=name, ylabel="accuracy", ylim=(-0.03, 1.03))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
