"""The results of `depth`: a record for each configuration, as JSON and as a table."""

import dataclasses
import math
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from jaxtrelu._cli.console import spelled
from jaxtrelu._cli.depth import initialisation
from jaxtrelu._cli.depth.initialisation import Measured
from jaxtrelu._cli.depth.settings import Configuration, Settings
from jaxtrelu._cli.depth.training import Result
from jaxtrelu._cli.numbers import standard_error, to_json

# Points of accuracy by which a net may miss ReLU's and count as trained.
CLOSE = 0.02

COLUMNS = {
    "name": "relu, or the share of zeros and the slope V' of the variance map at its fixed point",
    "sparsity": "the share of zeros that it starts with; null: ReLU",
    "slope": "V'; null: no ceiling",
    "threshold": "θ",
    "ceiling": "m, the largest value",
    "weight_variance": "σ_w², of a weight times the fan-in",
    "bias_variance": "σ_b²",
    "test_accuracy": "share of test rows classified correctly, mean over seeds",
    "test_accuracy_se": "its standard error over seeds",
    "difference": "test accuracy minus ReLU's, paired by seed, mean",
    "difference_se": "standard error of that difference",
    "train_accuracy": "mean over seeds",
    "zeros": "share of zeros in the hidden layers on test rows after training",
    "zeros_at_start": "the same before",
    "variance_ratio": "variance that a layer makes over V(the variance it is given), at the start",
    "variance_ratio_se": "its standard error over nets",
    "gradient_ratio": "squared gradient that a layer passes back over what χ₁ says, at the start",
    "gradient_ratio_se": "its standard error over nets",
    "drift_low": "variance of the last layer over that of the first, lower quartile of the nets",
    "drift_high": "upper quartile",
    "gradient_drift_low": "squared gradient of the first layer over that of the last, lower "
    "quartile of the nets",
    "gradient_drift": "median",
    "gradient_drift_high": "upper quartile",
}


def records(
    configurations: list[Configuration], found: list[Result], measured: list[Measured]
) -> list[dict[str, Any]]:
    """The outcomes as numbers, with the keys of `COLUMNS`; ReLU's comes first.

    Where nothing was trained, what training would give is NaN.
    """
    written = []
    results: list[Any] = list(found) or [None] * len(configurations)
    for configuration, result, start in zip(configurations, results, measured, strict=True):
        values = (
            configuration.name,
            configuration.sparsity,
            configuration.slope,
            *configuration.start,
            *_trained(result, found[0] if found else None),
            *initialisation.variance_agreement(configuration, start),
            *initialisation.gradient_agreement(configuration, start),
            *initialisation.drift(start),
            *initialisation.gradient_drift(start),
        )
        written.append(dict(zip(COLUMNS, values, strict=True)))
    return written


def _trained(result: Result | None, reference: Result | None) -> tuple[float, ...]:
    if result is None or reference is None:
        return (math.nan,) * 7
    difference = result.test_accuracy - reference.test_accuracy
    return (
        float(result.test_accuracy.mean()),
        standard_error(result.test_accuracy),
        float(difference.mean()),
        standard_error(difference),
        float(result.train_accuracy.mean()),
        float(result.zeros[:, 1].mean()),
        float(result.zeros[:, 0].mean()),
    )


def document(
    records: list[dict[str, Any]],
    found: list[Result],
    measured: list[Measured],
    settings: Settings,
    about: dict[str, Any],
) -> str:
    """Everything needed to read or repeat the experiment, as JSON without NaN."""
    names = [record["name"] for record in records]
    return to_json(
        {
            "about": about,
            "settings": dataclasses.asdict(settings),
            "columns": COLUMNS,
            "results": records,
            "per_seed": {
                name: {field: part.tolist() for field, part in result._asdict().items()}
                for name, result in zip(names, found, strict=False)
            },
            "by_layer_at_start": {
                name: {field: part.mean((0, 2)).tolist() for field, part in start._asdict().items()}
                for name, start in zip(names, measured, strict=True)
            },
        }
    )


def show(terminal: Console, records: list[dict[str, Any]], settings: Settings, name: str) -> None:
    """Prints the table and what came out of it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    headers = ("s", "V'", "θ", "ceiling", "accuracy, %", "vs ReLU", "zeros", "V", "χ₁", "drift")
    for header in headers:
        justify: JustifyMethod = "left" if header == "s" else "right"
        table.add_column(spelled(header, terminal.encoding), justify=justify, no_wrap=True)
    slope: Any = records[0]["slope"]
    for number, record in enumerate(records):
        if number == 1 or record["slope"] != slope:
            table.add_section()
        slope = record["slope"]
        table.add_row(*(spelled(cell, terminal.encoding) for cell in _cells(record)))

    def say(text: str, style: str = "") -> None:
        terminal.print(Text(f"\n{spelled(text, terminal.encoding)}", style=style))

    say(f"{name}: {settings.depth} layers of {settings.width}, {settings.seeds} seeds", "bold")
    terminal.print(table)
    say(
        "V and χ₁: measured over predicted, of a layer before training; drift: variance of the "
        "last layer over the first's, quartiles over nets",
        "dim",
    )
    say(f"{finding(records)}\n")


def _cells(record: dict[str, Any]) -> list[str]:
    def plus_minus(value: float, error: float, sign: str = "") -> str:
        spread = "" if math.isnan(error) else f" ± {100 * error:.1f}"
        return f"{100 * value:{sign}.1f}{spread}"

    relu = record["sparsity"] is None
    trained = [""] * 3
    if not math.isnan(record["test_accuracy"]):
        trained = [
            plus_minus(record["test_accuracy"], record["test_accuracy_se"]),
            "" if relu else plus_minus(record["difference"], record["difference_se"], "+"),
            f"{record['zeros']:.0%}",
        ]
    return [
        "ReLU" if relu else f"{record['sparsity']:g}",
        "-" if record["slope"] is None else f"{record['slope']:g}",
        f"{record['threshold']:.2f}",
        "-" if record["ceiling"] is None else f"{record['ceiling']:.2f}",
        *trained,
        f"{record['variance_ratio']:.3f}",
        f"{record['gradient_ratio']:.3f}",
        f"{record['drift_low']:.2g}–{record['drift_high']:.2g}",
    ]


def finding(records: list[dict[str, Any]]) -> str:
    """What the numbers say, in sentences."""
    relu, *others = records
    rows = []
    for slope in dict.fromkeys(record["slope"] for record in others):
        row = [record for record in others if record["slope"] == slope]
        close = [f"{r['sparsity']:g}" for r in row if r["difference"] >= -CLOSE]
        what = "without a ceiling" if slope is None else f"V' = {slope:g}"
        rows.append(f"{what}: {', '.join(close) if close else 'none'}")
    start = (
        f"Before training a layer misses the formulas in {_worst(records, 'variance')} and in "
        f"{_worst(records, 'gradient')}."
    )
    if math.isnan(relu["test_accuracy"]):
        return start
    return (
        f"Within {100 * CLOSE:g} points of ReLU ({100 * relu['test_accuracy']:.1f} %) by share of "
        f"zeros at the start: {'; '.join(rows)}. {start}"
    )


def _worst(records: list[dict[str, Any]], what: str) -> str:
    """Where measured and predicted are furthest apart."""

    def off(record: dict[str, Any]) -> float:
        return abs(record[f"{what}_ratio"] - 1)

    worst = max((r for r in records if not math.isnan(off(r))), key=off, default=None)
    name = {"variance": "the variance", "gradient": "the squared gradient"}[what]
    if worst is None:
        return f"{name} by what is no number"
    return f"{name} by {off(worst):.1%} at most ({worst['name']})"
