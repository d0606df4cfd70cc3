"""The table that `compare` prints."""

import math
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from jaxtrelu.cli.data import Dataset, stratified_split
from jaxtrelu.cli.settings import REFERENCE, Settings

# A table of all columns is 96 characters wide; on a narrower terminal the last ones here go first.
_OPTIONAL = ("rate", "zeros", "dead")


def show(terminal: Console, found: list[dict[str, Any]], settings: Settings, data: Dataset) -> None:
    """Prints the table, what its columns mean, and what they do and do not show."""
    cells = [_cells(record) for record in found]
    columns = [header for header in cells[0] if header not in _dropped(cells, terminal.width)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
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
    terminal.print(Text(legend(settings), style="dim"))
    terminal.print(Text(f"\n{caveat(settings, data)}\n"))


def _group(record: dict[str, Any]) -> str:
    """The variant of a thresholded ReLU; nothing for the others."""
    variant, dash, _ = record["activation"].partition("-")
    return variant if dash else ""


def _dropped(cells: list[dict[str, str]], width: int) -> tuple[str, ...]:
    """The optional columns for which there is no room."""
    widths = {header: max(len(header), *(len(row[header]) for row in cells)) for header in cells[0]}
    for count in range(len(_OPTIONAL)):
        kept = [width for header, width in widths.items() if header not in _OPTIONAL[:count]]
        if sum(kept) + 2 * len(kept) <= width:
            return _OPTIONAL[:count]
    return _OPTIONAL


def _cells(record: dict[str, Any]) -> dict[str, str]:
    """Column to content, as printed."""
    accuracy = 100 * record["test_accuracy"]
    against = f"{100 * record['difference']:+.1f}{_plus_minus(record['difference_se'])}"
    low, high = record["time_ratio_low"], record["time_ratio_high"]
    return {
        "activation": record["activation"],
        "accuracy, %": f"{accuracy:.1f}{_plus_minus(record['test_accuracy_se'])}",
        f"vs {REFERENCE}": "" if record["activation"] == REFERENCE else against,
        "zeros": f"{record['zeros']:.0%}",
        "closed": f"{record['closed']:.0%}",
        "dead": f"{record['dead_units']:.1f}",
        "kept, B": f"{record['kept_bytes']:.2f}",
        "time per step": f"{record['time_ratio']:.2f} ({low:.2f}–{high:.2f})",
        "rate": f"{record['learning_rate']:g}",
    }


def _plus_minus(error: float) -> str:
    """A standard error of a share, in percentage points; nothing where there is none."""
    return "" if math.isnan(error) else f" ± {100 * error:.1f}"


def legend(settings: Settings) -> str:
    """What each column is, in full."""
    units = settings.depth * settings.width
    return (
        f"accuracy: on test rows; mean ± standard error over {settings.seeds} seeds; "
        f"vs {REFERENCE}: difference in points, paired by seed\n"
        "zeros: hidden values that are exactly 0; closed: hidden units with derivative exactly 0 "
        "(test rows)\n"
        f"dead: of {units} hidden units, those closed on every training row\n"
        "kept: bytes that jax.vjp of the jitted network keeps per hidden unit and row, 4 of them "
        "for the next layer\n"
        f"time per step: relative to {REFERENCE}, measured in turns; median (quartiles); "
        "rate: chosen learning rate"
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
