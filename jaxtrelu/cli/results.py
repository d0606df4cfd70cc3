"""The results of `compare`: one row per activation, as a table, CSV and JSON."""

import csv
import dataclasses
import io
import json
from typing import Any

import numpy as np

from jaxtrelu.cli.measure import Ratio
from jaxtrelu.cli.settings import REFERENCE, Settings


@dataclasses.dataclass(frozen=True)
class Curves:
    """Of the runs at the chosen learning rate, after each epoch: (seeds, epochs)."""

    loss: np.ndarray  # mean over the epoch's steps
    validation: np.ndarray  # accuracy
    closed: np.ndarray  # share of hidden units with derivative 0
    thresholds: np.ndarray  # quantiles .1, .5, .9 by layer: (seeds, epochs, depth, 3), or NaN


@dataclasses.dataclass(frozen=True)
class Row:
    """What one activation gave. Arrays hold one number per seed."""

    name: str
    learning_rate: float
    accuracy: np.ndarray
    zeros: np.ndarray
    closed: np.ndarray
    dead: np.ndarray
    kept_bytes: float
    temporary_bytes: int
    step_seconds: float
    ratio: Ratio
    curves: Curves


def standard_error(values: np.ndarray) -> float:
    """Of the mean; NaN for a single value, which says nothing about spread."""
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


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
    "kept_bytes": "bytes per hidden unit and row that jax.vjp of the jitted network keeps, "
    "including the 4 of the output that the next layer needs",
    "temporary_bytes": "temporary memory of the compiled training epoch, all runs together",
    "step_seconds": "median time of a training step, all runs together",
    "time_ratio": f"time of a training step relative to {REFERENCE}'s, measured in turns, median",
    "time_ratio_low": "its lower quartile",
    "time_ratio_high": "its upper quartile",
    "learning_rate": "chosen on validation rows, out of the same candidates for all",
}


def records(rows: list[Row], settings: Settings) -> list[dict[str, Any]]:
    """The rows as numbers, with the keys of `COLUMNS`."""
    reference = next(row for row in rows if row.name == REFERENCE)
    found = []
    for row in rows:
        difference = row.accuracy - reference.accuracy
        values = (
            row.name,
            float(row.accuracy.mean()),
            standard_error(row.accuracy),
            float(difference.mean()),
            standard_error(difference),
            float(row.zeros.mean()),
            float(row.closed.mean()),
            float(row.dead.mean()),
            settings.depth * settings.width,
            row.kept_bytes,
            row.temporary_bytes,
            row.step_seconds,
            *row.ratio,
            row.learning_rate,
        )
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def to_csv(found: list[dict[str, Any]]) -> str:
    """The records as CSV with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def to_json(
    found: list[dict[str, Any]], rows: list[Row], settings: Settings, about: dict[str, Any]
) -> str:
    """Everything needed to read or repeat the comparison, as JSON without NaN."""
    document = {
        "about": about,
        "settings": dataclasses.asdict(settings),
        "columns": COLUMNS,
        "results": found,
        "per_seed": {
            row.name: {
                "test_accuracy": row.accuracy.tolist(),
                "loss_by_epoch": row.curves.loss.tolist(),
                "validation_accuracy_by_epoch": row.curves.validation.tolist(),
            }
            for row in rows
        },
    }
    return json.dumps(_without_nan(document), indent=1, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
