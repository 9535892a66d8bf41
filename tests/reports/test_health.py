"""The section of a report on the health of the memories."""

import re

from memtx import reports
from memtx.reports.health import explain, tabulate_health
from memtx.reports.page import page
from memtx.reports.runs import Run
from tests.reports.made import runs, study

ACCURACY = {"eval/accuracy": 0.5}
BANK = {
    "memory/age": 12.0,
    "memory/never_read": 0.25,
    "memory/gate": 0.5,
    "memory/gate_min": 0.1,
    "memory/gate_max": 0.9,
    "memory/never_read/layer=0": 0.25,
}


def with_health() -> list[Run]:
    banks = runs({"memorizing": (0.1, 0.2)}, result=ACCURACY | BANK)
    plain = runs({"window": (0.1,)}, result=ACCURACY)
    return [*banks, *runs({"gla": (0.1,)}, result=ACCURACY | {"memory/effective_rank": 3.0}), *plain]


def test_there_is_a_table_for_each_kind_and_a_row_for_each_setting():
    entries, matrices, gates = tabulate_health(study(), with_health())
    assert [*entries.columns] == ["never read", "age"]
    assert [*matrices.columns] == ["effective rank"]
    assert [*gates.columns] == ["gate"]
    assert [row.labels for row in entries.started().rows] == [("memorizing",)]
    assert [row.labels for row in matrices.started().rows] == [("gla",)]
    assert entries["memorizing", "age"].text(3) == "12.000 ± 0.000 (2)"
    assert entries.rows[1].cells["age"].text(3) == "–"
    assert not any(cell.best or cell.budget for row in entries.rows for cell in row.cells.values())
    assert "no query has read" in explain(entries.columns)["never read"]
    assert "beside attention" in explain(gates.columns)["gate"]


def test_the_page_shows_it_only_if_runs_have_measured_it():
    text = page(reports.conclude(study(), with_health()))
    section = re.search(r"<h2>Health of the memory</h2>.*?<h2>", text, re.DOTALL)[0]
    assert section.count("<table>") == 3
    assert section.count("<tr>") == 3 + 3
    assert "<dt>never read</dt>" in section
    assert "12 ± 0 (2)" in section
    assert "gate min" not in section
    without = reports.conclude(study(), runs())
    assert without.health == []
    assert "Health" not in page(without)
