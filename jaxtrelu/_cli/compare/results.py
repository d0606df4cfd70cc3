"""The results of `compare`, one record per activation: as CSV, as JSON, and as a table."""

import csv
import dataclasses
import io
import math
from collections.abc import Container
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from jaxtrelu._cli.compare.experiment import SHARES, Outcome
from jaxtrelu._cli.compare.settings import REFERENCE, Settings
from jaxtrelu._cli.console import spelled
from jaxtrelu._cli.datasets import Dataset, stratified_split
from jaxtrelu._cli.numbers import standard_error
from jaxtrelu._cli.numbers import to_json as encoded

# Name and meaning of each column of the CSV and the JSON.
COLUMNS = {
    "activation": "name; shift, hard and clamp are the variants of thresholded ReLU",
    "test_accuracy": "share of test rows classified correctly, mean over seeds",
    "test_accuracy_se": "its standard error over seeds (splits and initialisations)",
    "difference": f"test accuracy minus {REFERENCE}'s, paired by seed, mean",
    "difference_se": "standard error of that difference",
    "zeros": "share of hidden values that are exactly 0, on test rows",
    "closed": "share of hidden units whose derivative is exactly 0, on test rows",
    "dead_units": "hidden units whose derivative is 0 on every training row, mean over seeds",
    "units": "hidden units of the network",
    "read": "accuracy, on test rows, of a linear probe on the first hidden layer, mean over seeds",
    "kept_bytes": "bytes per hidden unit and row that jax.vjp of the jitted network keeps, "
    "including the 4 of the output that the next layer needs",
    "temporary_bytes": "temporary memory of the compiled training epoch, all runs together",
    "step_seconds": "median time of a training step, all runs together",
    "time_ratio": f"time of a training step relative to {REFERENCE}'s, measured in turns, median",
    "time_ratio_low": "its lower quartile",
    "time_ratio_high": "its upper quartile",
    "learning_rate": "chosen on validation rows, out of the same candidates for all",
}


def records(outcomes: list[Outcome], settings: Settings) -> list[dict[str, Any]]:
    """The outcomes as numbers, with the keys of `COLUMNS`."""
    reference = next(outcome for outcome in outcomes if outcome.name == REFERENCE)
    written = []
    for outcome in outcomes:
        difference = outcome.accuracy - reference.accuracy
        values = (
            outcome.name,
            float(outcome.accuracy.mean()),
            standard_error(outcome.accuracy),
            float(difference.mean()),
            standard_error(difference),
            float(outcome.zeros.mean()),
            float(outcome.closed.mean()),
            float(outcome.dead.mean()),
            settings.depth * settings.width,
            float(outcome.read.mean()),
            outcome.kept_bytes,
            outcome.temporary_bytes,
            outcome.step_seconds,
            *outcome.ratio,
            outcome.learning_rate,
        )
        written.append(dict(zip(COLUMNS, values, strict=True)))
    return written


def to_csv(records: list[dict[str, Any]]) -> str:
    """The records as CSV with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def to_json(
    records: list[dict[str, Any]],
    outcomes: list[Outcome],
    settings: Settings,
    about: dict[str, Any],
) -> str:
    """Everything needed to read or repeat the comparison, as JSON without NaN."""
    document = {
        "about": about,
        "settings": dataclasses.asdict(settings),
        "columns": COLUMNS,
        "results": records,
        "per_seed": {
            outcome.name: {
                "test_accuracy": outcome.accuracy.tolist(),
                "loss_by_epoch": outcome.history.loss.tolist(),
                "validation_accuracy_by_epoch": outcome.history.validation.tolist(),
                "linear_probe": outcome.read.tolist(),
            }
            for outcome in outcomes
        },
        "fatrelu_after_training": {
            outcome.name: {
                "sparsity": list(SHARES),
                "zeros": outcome.cut[1].tolist(),
                "test_accuracy": outcome.cut[0].tolist(),
            }
            for outcome in outcomes
            if outcome.cut is not None
        },
    }
    return encoded(document)


# Given up one after the other where the terminal is too narrow for the whole table, which has some
# 100 characters; without them it has less than 80.
_OPTIONAL = ("rate", "quartiles", "read")
_GAP = 2  # characters between two columns


def show(
    terminal: Console, records: list[dict[str, Any]], settings: Settings, data: Dataset
) -> None:
    """Prints the table, what its columns mean, and what they do and do not show.

    In ASCII where the terminal's encoding lacks a character: before it is laid out, so that the
    columns stay in line.
    """
    lines = _fitting(records, terminal.width, terminal.encoding)
    columns = list(lines[0])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for header in columns:
        justify: JustifyMethod = "left" if header == "activation" else "right"
        table.add_column(header, justify=justify, no_wrap=True)
    group = _group(records[0])
    for record, line in zip(records, lines, strict=True):
        if _group(record) != group:
            table.add_section()
        group = _group(record)
        table.add_row(*line.values())
    rows, features = data.features.shape
    title = f"{data.name}: {rows} rows, {features} features, {data.classes} classes"

    def say(text: str, style: str = "") -> None:
        terminal.print(Text(f"\n{spelled(text, terminal.encoding)}", style=style))

    say(title, "bold")
    terminal.print(table)
    say(f"{sentences(settings, data)}\n")


def _group(record: dict[str, Any]) -> str:
    """The variant of a thresholded ReLU; nothing for the others."""
    variant, dash, _ = record["activation"].partition("-")
    return variant if dash else ""


def _fitting(records: list[dict[str, Any]], width: int, encoding: str) -> list[dict[str, str]]:
    """The table's lines, without as many of the optional parts as there is no room for."""
    for count in range(len(_OPTIONAL) + 1):
        lines = [
            {header: spelled(cell, encoding) for header, cell in cells.items()}
            for cells in (_cells(record, without=_OPTIONAL[:count]) for record in records)
        ]
        widths = [max(len(header), *(len(line[header]) for line in lines)) for header in lines[0]]
        if sum(widths) + _GAP * (len(widths) - 1) <= width:
            break
    return lines


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
        "read": f"{100 * record['read']:.1f}",
        "bytes": f"{record['kept_bytes']:.2f}",
        "time": f"{record['time_ratio']:.2f}{'' if 'quartiles' in without else quartiles}",
        "rate": f"{record['learning_rate']:g}",
    }
    return {header: cell for header, cell in cells.items() if header not in without}


def _plus_minus(error: float) -> str:
    """A standard error of a share, in percentage points; nothing where there is none."""
    return "" if math.isnan(error) else f" ± {100 * error:.1f}"


def sentences(settings: Settings, data: Dataset) -> str:
    """What the table shows, in two sentences; `COLUMNS` has it at length, in the JSON."""
    tested = len(stratified_split(data.labels, settings.seed).test)
    rates = len(settings.learning_rate)
    rate = "one learning rate" if rates == 1 else f"the best of the same {rates} learning rates"
    splits = f"{settings.seeds} split" + ("s" if settings.seeds > 1 else "")
    return (
        f"Means over {splits} with {tested} test rows each, ± their standard error, at {rate}: a "
        "difference below two of them may be noise. zeros and closed (derivative 0) are shares of "
        f"hidden values, dead counts units that no training row opens, of "
        f"{settings.depth * settings.width}, read is what a linear probe reads from the first "
        "hidden layer, bytes are kept for the backward pass per hidden value (4 of them for the "
        f"next layer), and time is a training step's against {REFERENCE}'s on this machine, where "
        "zeros are not skipped."
    )
