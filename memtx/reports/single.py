"""The contents of the page of a single run, which may be unfinished: curves, the last evaluation, facts and the config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtx.errors import UserError
from memtx.evaluation.summary import FIRST
from memtx.reports.figures import Line, Picture, Point, is_wide, name_axis
from memtx.reports.findings import duration, origin
from memtx.reports.formats import Entry, Grid
from memtx.reports.runs import FINISHED, Curve, Run, build, read_json, read_metrics
from memtx.reports.table import HIGHER
from memtx.sweep.record import metrics, tokens_per_s
from memtx.training.checkpoint import read_meta
from memtx.training.trees import elements
from memtx.training.workdir import RECORD, SAMPLE, default_keys, dotted

MAIN = ("eval/bits_per_byte", "eval/accuracy", "eval/f1", "eval/loss")  # the curve of evaluations is the first of these
SLICE = re.compile(r"eval/(\w+?)(_wiped)?/(\w+)=(.*)")
SIDES = (("carried", ""), ("wiped", "_wiped"))  # of the memory


@dataclass(frozen=True)
class Single:
    """A run with its config as JSON values.

    changes: of the config since step 0. step, evaluated: the last step and the last one with an evaluation. sample: that of
    `memtx train`, or "".
    """

    run: Run
    config: Mapping[str, Any]
    changes: Sequence[str]
    step: int
    evaluated: int
    sample: str

    @property
    def progress(self) -> str:
        """The number of steps and whether the run has finished, as a sentence."""
        steps = self.config["train"]["steps"]
        state = "Finished" if self.evaluated >= steps and not self.run.error else "Not finished"
        error = f" It failed: {self.run.error}" if self.run.error else ""
        return f"{state}: {self.step:,} of {steps:,} steps.{error}"

    def facts(self) -> dict[str, str]:
        """Return facts about the run by name: parameters, speed, time, devices, machine, versions and code."""
        run, speed = self.run, self.run.number("train/tokens_per_s")
        parts = {
            "parameters": f"{run.budget['params']:,}" if run.budget.get("params") else "",
            "speed": f"{speed:,.0f} tokens per second" if speed else "",
            "time": duration(run.seconds) if run.seconds else "",
            "device": ", ".join(run.machine.get("kinds", ())),
            "changed": "; ".join(self.changes),
        }
        return {name: text for name, text in (parts | origin([run])).items() if text}

    def keys(self, changed: bool) -> dict[str, str]:
        """Return the dotted keys of the config with their values: all, or those that differ from their defaults."""
        defaults = default_keys(self.config.get("memory", {})) if changed else {}
        return {
            key: json.dumps(value)
            for key, value in dotted(self.config).items()
            if key not in defaults or value != defaults[key]
        }


def from_run(workdir: Path) -> Single:
    """Read a run from its folder. Raises UserError if there is no run.

    The versions and the machine are in run.json if the run is part of a sweep, or else in its checkpoints.
    """
    path, record = workdir / "config.json", workdir / RECORD
    if not path.exists():
        raise UserError(
            f"{workdir} is not the workdir of a run (it has no {path.name}); the report of a sweep needs --sweep=FILE"
        )
    config = read_json(path)
    if not isinstance(config.get("train"), dict) or not isinstance(config["train"].get("steps"), int):
        raise UserError(f"{path} is not the config of a run")
    try:
        meta = read_meta(workdir)
    except UserError:
        meta = {}  # nothing was saved yet
    lines, params = metrics(workdir), meta.get("leaves", {}).get("params", {})
    values = {
        "name": workdir.resolve().name,
        "status": FINISHED,
        "versions": meta.get("versions", {}),
        "machine": meta.get("machine", {}),
        "budget": {"params": sum(map(elements, params.values()))},
    }
    values |= read_json(record) if record.exists() else {"train_tokens_per_s": tokens_per_s(lines)}
    run = build(record, values | read_metrics(lines, values, ("train/loss", "train/lr")))
    step = max([meta.get("step", 0), *(line["step"] for line in lines[-1:])])
    evaluated = max((line["step"] for line in lines if any(name.startswith("eval/") for name in line)), default=0)
    sample = workdir / SAMPLE
    text = sample.read_text(encoding="utf-8") if sample.exists() else ""
    return Single(run, config, meta.get("changes", ()), step, evaluated, text)


def results(run: Run) -> Grid | None:
    """Return the table of the last evaluation, or None. Slices whose values are numbers are in the figures instead."""
    rows = []
    for name, here in run.result.items():
        metric, slash, part = name.removeprefix("eval/").partition("/")
        if not name.startswith("eval/") or metric.endswith("_wiped") or _number(part.partition("=")[2]) is not None:
            continue
        wiped = run.result.get(f"eval/{metric}_wiped{slash}{part}")
        gain = 0.0 if wiped is None else here - wiped if metric in HIGHER else wiped - here
        both = ("", "") if wiped is None else (f"{wiped:,.4f}", f"{gain:+,.4f}")
        rows.append([Entry(name.removeprefix("eval/").replace("_", " ")), Entry(f"{here:,.4f}"), *map(Entry, both)])
    return Grid(1, ["", "memory carried", "memory wiped", "gain"], rows, []) if rows else None


def curves(run: Run) -> list[Picture]:
    """Return the figures of a run: training loss, evaluations, learning rate, and the last evaluation by slice."""
    main = next((name for name in MAIN if name in run.curves), "")
    found = [
        _draw("Training loss", "step", "train/loss", {"": run.curves.get("train/loss", [])}),
        _draw("Evaluations", "step", main, {side: run.curves.get(f"{main}{end}", []) for side, end in SIDES}),
        _draw("Learning rate", "step", "train/lr", {"": run.curves.get("train/lr", [])}),
    ]
    slices: dict[tuple[str, str], dict[str, Curve]] = {}
    for name, value in run.result.items():
        if (match := SLICE.fullmatch(name)) and (x := _number(match[4])) is not None:
            side = "wiped" if match[2] else "carried"
            slices.setdefault((match[1], match[3]), {}).setdefault(side, []).append([x, value])
    return [picture for picture in [*found, *(_by_slice(*names, lines) for names, lines in slices.items())] if picture]


def _by_slice(metric: str, name: str, lines: Mapping[str, Curve]) -> Picture | None:
    """Return the figure of a metric by slice. The high loss of the first tokens of a document would hide the rest."""
    kept = {side: [point for point in curve if name != "position" or point[0] >= FIRST] for side, curve in lines.items()}
    title = f"{metric[0].upper()}{metric[1:].replace('_', ' ')} by {name.replace('_', ' ')}"
    return _draw(title, name, f"eval/{metric}", {side: sorted(curve) for side, curve in kept.items()})


def _draw(title: str, over: str, y: str, lines: Mapping[str, Curve]) -> Picture | None:
    """Return a figure, or None without a line of several points."""
    drawn = [Line(side, [Point(x, value, None) for x, value in curve]) for side, curve in lines.items() if len(curve) > 1]
    if not drawn:
        return None
    log = "x" if over != "step" and is_wide([point.x for line in drawn for point in line.points]) else ""
    return Picture(title, name_axis(over), name_axis(y), log, False, drawn)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
