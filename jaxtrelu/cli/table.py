"""The table that `compare` prints."""

import math
from collections.abc import Container
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from jaxtrelu.cli.data import Dataset, stratified_split
from jaxtrelu.cli.settings import REFERENCE, Settings

# Given up one after the other where the terminal is too narrow for the whole table, which has some
# 95 characters; without them it has less than 80.
_OPTIONAL = ("rate", "quartiles")
_GAP = 2  # characters between two columns


def show(terminal: Console, found: list[dict[str, Any]], settings: Settings, data: Dataset) -> None:
    """Prints the table, what its columns mean, and what they do and do not show."""
    cells = _fitting(found, terminal.width)
    columns = list(cells[0])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for header in columns:
        justify: JustifyMethod = "left" if header == "activation" else "right"
        table.add_column(header, justify=justify, no_wrap=True)
    group = _group(found[0])
    for record, row in zip(found, cells, strict=True):
        if _group(record) != group:
            table.add_section()
        group = _group(record)
        table.add_row(*(row[header] for header in columns))
    rows, features = data.features.shape
    title = f"{data.name}: {rows} rows, {features} features, {data.classes} classes"
    terminal.print(Text(f"\n{title}", style="bold"))
    terminal.print(table)
    terminal.print(Text(f"\n{legend(settings, columns)}", style="dim"))
    terminal.print(Text(f"\n{caveat(settings, data)}\n"))


def _group(record: dict[str, Any]) -> str:
    """The variant of a thresholded ReLU; nothing for the others."""
    variant, dash, _ = record["activation"].partition("-")
    return variant if dash else ""


def _fitting(found: list[dict[str, Any]], width: int) -> list[dict[str, str]]:
    """The rows, without as many of the optional parts as there is no room for."""
    for count in range(len(_OPTIONAL) + 1):
        cells = [_cells(record, without=_OPTIONAL[:count]) for record in found]
        widths = [max(len(header), *(len(row[header]) for row in cells)) for header in cells[0]]
        if sum(widths) + _GAP * (len(widths) - 1) <= width:
            break
    return cells


def _cells(record: dict[str, Any], without: Container[str] = ()) -> dict[str, str]:
    """Column to content, as printed."""
    accuracy = 100 * record["test_accuracy"]
    against = f"{100 * record['difference']:+.1f}{_plus_minus(record['difference_se'])}"
    quartiles = f" ({record['time_ratio_low']:.2f}–{record['time_ratio_high']:.2f})"
    cells = {
        "activation": record["activation"],
        "accuracy, %": f"{accuracy:.1f}{_plus_minus(record['test_accuracy_se'])}",
        f"vs {REFERENCE}": "" if record["activation"] == REFERENCE else against,
        "zeros": f"{record['zeros']:.0%}",
        "closed": f"{record['closed']:.0%}",
        "dead": f"{record['dead_units']:.1f}",
        "bytes": f"{record['kept_bytes']:.2f}",
        "time": f"{record['time_ratio']:.2f}{'' if 'quartiles' in without else quartiles}",
        "rate": f"{record['learning_rate']:g}",
    }
    return {header: cell for header, cell in cells.items() if header not in without}


def _plus_minus(error: float) -> str:
    """A standard error of a share, in percentage points; nothing where there is none."""
    return "" if math.isnan(error) else f" ± {100 * error:.1f}"


def legend(settings: Settings, columns: Container[str]) -> str:
    """What each of these columns is, in full, a line each."""
    units = settings.depth * settings.width
    meanings = {
        "accuracy, %": f"on test rows, mean ± standard error over {settings.seeds} seeds",
        f"vs {REFERENCE}": "difference in points ± its standard error, paired by seed",
        "zeros": "hidden values that are exactly 0, on test rows",
        "closed": "hidden units with derivative exactly 0, on test rows",
        "dead": f"of {units} hidden units, those closed on every training row",
        "bytes": "that jax.vjp of the jitted network keeps for the backward pass, per\n"
        "hidden unit and row; the next layer needs 4 of them",
        "time": f"of a training step relative to {REFERENCE}'s, in turns: median (quartiles)",
        "rate": "the learning rate that did best on validation rows",
    }
    shown = {name: text for name, text in meanings.items() if name in columns}
    margin = max(map(len, shown)) + 2
    return "\n".join(
        f"{name:<{margin}}" + text.replace("\n", "\n" + " " * margin)
        for name, text in shown.items()
    )


def caveat(settings: Settings, data: Dataset) -> str:
    """One sentence on what the numbers show and what they do not."""
    tested = len(stratified_split(data.labels, settings.seed).test)
    rates = len(settings.learning_rate)
    rate = "one learning rate" if rates == 1 else f"the best of the same {rates} learning rates"
    splits = f"{settings.seeds} random split" + ("s" if settings.seeds > 1 else "")
    return (
        f"These numbers show how one small network ({settings.depth} × {settings.width} hidden "
        f"units) does on {data.name} with each activation, at {rate}, over {splits} with {tested} "
        "test rows each, so a difference below two standard errors may well be noise; they do not "
        "show what another architecture, more data or tuning would give, and bytes and times hold "
        "for these shapes and this machine, where zeros are not skipped and so save no time."
    )
