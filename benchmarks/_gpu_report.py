"""What `gpu.py` says: a short table, the goals, and a file with all numbers, written whole."""

import dataclasses
import json
from pathlib import Path

from _gpu_cases import Case, Goal
from _gpu_check import Checks
from _gpu_timing import Budget, Row
from _harness import environment
from rich.console import Console
from rich.table import Table

from jaxtrelu._files import write_file

OURS = ("xla", "experimental_mosaic_gpu")
NUMBERS = ("ms", "spread", "device ms", "per second", "relative", "difference", "MB")


class Report:
    """What was found so far."""

    def __init__(self, output: Path | None, budget: Budget):
        self.output, self.budget, self.environment = output, budget, environment()
        self.checks = Checks()
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.goals: list[str] = []

    def add(self, case: Case, rows: list[Row]) -> None:
        """Takes the rows of a case, judges them, and writes the file anew."""
        self.rows += rows
        for row in rows:
            if row.difference is not None and not row.difference <= case.tolerance:
                self.failures.append(
                    f"{row.case}, {row.peer}: differs by {row.difference:.2g} of the largest value"
                )
        self.goals += [_judged(case, goal, rows) for goal in case.goals]
        self.write(finished=False)

    def write(self, *, finished: bool) -> None:
        """Writes all numbers, if a file was asked for."""
        if self.output is None:
            return
        document = {
            "environment": self.environment,
            "finished": finished,
            "seconds": self.budget.used,
            "comparisons": self.checks.count,
            "failures": [*self.checks.failures, *self.failures],
            "goals": self.goals,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }
        write_file(self.output, json.dumps(document, indent=1) + "\n")

    def show_checks(self, console: Console) -> None:
        """Says what the kernels' comparisons with float64 found."""
        for failure in self.checks.failures:
            console.print(f"WRONG: {failure}")
        right = self.checks.count - len(self.checks.failures)
        console.print(f"kernels against float64: {right} of {self.checks.count} right")

    def show(self, console: Console) -> None:
        """Prints the table, the goals and what is wrong."""
        console.print(_table(self.rows))
        for line in [*self.goals, *(f"WRONG: {failure}" for failure in self.failures)]:
            console.print(line)
        console.print(f"{self.budget.used:.0f} s")


def _judged(case: Case, goal: Goal, rows: list[Row]) -> str:
    rates = {row.peer: row.rate for row in rows if row.rate}
    best = max((rates[n] for n in goal.against if n in rates), default=None)
    found = []
    for name in OURS:
        if best is None or name not in rates:
            found.append(f"{name} not measured")
        else:
            share = rates[name] / best
            found.append(f"{name} {share:.3f}, {'met' if share >= goal.least else 'not met'}")
    against = " or ".join(goal.against)
    return f"goal, {case.name}: {goal.least:.3f} of {against}: {'; '.join(found)}"


def _table(rows: list[Row]) -> Table:
    """Columns without a number in any row are left out."""
    texts = [_numbers(row) for row in rows]
    used = [i for i in range(len(NUMBERS)) if any(text[i] for text in texts)]
    table = Table("case", "peer", box=None, header_style="")
    for i in used:
        table.add_column(NUMBERS[i], justify="right", no_wrap=True)
    table.add_column("note")
    previous = None
    for row, text in zip(rows, texts, strict=True):
        note = row.note or ("" if row.milliseconds is not None else "not measured")
        case = row.case if row.case != previous else ""
        table.add_row(case, row.peer, *(text[i] for i in used), note)
        previous = row.case
    return table


def _numbers(row: Row) -> list[str]:
    scale, prefix = (1e12, "T") if row.unit == "flop" else (1e9, "G")
    memory = row.planned_bytes if row.peak_bytes is None else row.peak_bytes
    mark = "~" if row.peak_bytes is None else ""
    return [
        _text(row.milliseconds, "{:.3f}"),
        _text(row.spread, "{:.1%}"),
        _text(row.device_milliseconds, "{:.3f}"),
        _text(row.rate and row.rate / scale, "{:.4g} " + prefix + row.unit),
        _text(row.share, "{:.3f}"),
        _text(row.difference, "{:.2g}"),
        _text(memory and memory / 1e6, mark + "{:.4g}"),
    ]


def _text(number: float | None, form: str) -> str:
    return "" if number is None else form.format(number)
