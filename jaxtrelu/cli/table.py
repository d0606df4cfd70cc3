"""The table that `compare` prints."""

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxtrelu.cli.data import Dataset, stratified_split
from jaxtrelu.cli.settings import REFERENCE, Settings

_HEADERS = (
    ("activation", "left"),
    ("test accuracy", "right"),
    (f"against {REFERENCE}", "right"),
    ("zeros", "right"),
    ("closed", "right"),
    ("dead", "right"),
    ("kept", "right"),
    ("time per step", "right"),
    ("rate", "right"),
)


def show(terminal: Console, found: list[dict[str, Any]], settings: Settings, data: Dataset) -> None:
    """Prints the table, what its columns mean, and what they do and do not show."""
    rows, features = data.features.shape
    table = Table(
        title=f"{data.name}: {rows} rows, {features} features, {data.classes} classes",
        box=box.SIMPLE_HEAD,
        title_style="bold",
        title_justify="left",
        pad_edge=False,
    )
    for header, justify in _HEADERS:
        table.add_column(header, justify=justify, no_wrap=True)
    group = None
    for record in found:
        variant = record["activation"].partition("-")[0] if "-" in record["activation"] else ""
        if group is not None and variant != group:
            table.add_section()
        group = variant
        table.add_row(*_cells(record))
    terminal.print(table)
    terminal.print(Text(legend(settings), style="dim"))
    terminal.print()
    terminal.print(Text(caveat(settings, data)))
    terminal.print()


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    is_reference = record["activation"] == REFERENCE
    return (
        record["activation"],
        f"{100 * record['test_accuracy']:.1f}{_plus_minus(record['test_accuracy_se'])} %",
        ""
        if is_reference
        else f"{100 * record['difference']:+.1f}{_plus_minus(record['difference_se'])}",
        f"{record['zeros']:.0%}",
        f"{record['closed']:.0%}",
        f"{record['dead_units']:.1f}",
        f"{record['kept_bytes']:.2f} B",
        f"{record['time_ratio']:.2f} ({record['time_ratio_low']:.2f}–{record['time_ratio_high']:.2f})",
        f"{record['learning_rate']:g}",
    )


def _plus_minus(error: float) -> str:
    """A standard error of a share, in percentage points; nothing where there is none."""
    return "" if math.isnan(error) else f" ± {100 * error:.1f}"


def legend(settings: Settings) -> str:
    """What each column is, in full."""
    return (
        f"test accuracy, against {REFERENCE}: mean ± standard error over {settings.seeds} seeds, "
        "differences paired by seed, in percentage points.\n"
        "zeros, closed: hidden values that are exactly 0; hidden units whose derivative is exactly "
        "0; both on test rows.\n"
        f"dead: of {settings.depth * settings.width} hidden units, those closed on every training "
        "row.\n"
        "kept: bytes per hidden unit and row that jax.vjp of the jitted network keeps for the "
        "backward pass,\n  with the 4 of the output that the next layer needs whatever the "
        "activation.\n"
        f"time per step: relative to {REFERENCE}, measured in turns: median (quartiles). "
        "rate: the learning rate chosen."
    )


def caveat(settings: Settings, data: Dataset) -> str:
    """One sentence on what the numbers show and what they do not."""
    tested = len(stratified_split(data.labels, settings.seed).test)
    seeds = f"{settings.seeds} random split" + ("s" if settings.seeds > 1 else "")
    rates = len(settings.learning_rate)
    rate = "at one learning rate" if rates == 1 else f"at the best of the same {rates} learning rates"
    return (
        f"These numbers show how one small network ({settings.depth} × {settings.width} hidden "
        f"units) does on {data.name} with each activation, {rate}, over {seeds} of {tested} test "
        "rows each, so a difference below two standard errors is noise; they do not show what "
        "another architecture, more data or tuning would give, and bytes and times hold for these "
        "shapes and this machine, where zeros are not skipped and so save no time."
    )
