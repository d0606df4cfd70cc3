"""Numbers that commands report: a standard error, and JSON that other programs can read."""

import json
from typing import Any

import numpy as np


def standard_error(values: np.ndarray) -> float:
    """Of the mean; NaN for a single value, which says nothing about spread."""
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def to_json(document: dict[str, Any]) -> str:
    r"""The document as JSON; null stands for NaN and infinity, which JSON has not.

    >>> to_json({"a": float("nan")})
    '{\n "a": null\n}\n'
    """
    return json.dumps(_without_nan(document), indent=1, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
