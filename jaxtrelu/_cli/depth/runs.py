"""What is kept of each configuration as soon as it is trained, so that a killed run goes on."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrelu import _files
from jaxtrelu._cli.datasets import Dataset
from jaxtrelu._cli.depth.settings import Configuration, Settings
from jaxtrelu._cli.depth.training import Result

FOLDER = "runs"


def key_of(configuration: Configuration, settings: Settings, data: Dataset) -> dict[str, Any]:
    """All that a result depends on."""
    told = dataclasses.asdict(settings)
    for name in ("sparsity", "slope", "together"):  # what else is trained, and beside what
        del told[name]
    digest = hashlib.sha256(data.features.tobytes() + data.labels.tobytes()).hexdigest()
    return {"start": list(configuration.start), "settings": told, "data": digest}


def load(folder: Path, configuration: Configuration, key: dict[str, Any]) -> Result | None:
    """The result of an earlier run with this key, if there is one."""
    try:
        found = json.loads((folder / FOLDER / f"{configuration.name}.json").read_text())
        if found["key"] != key:
            return None
        parts = [np.asarray(found[name], np.float64) for name in Result._fields]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or no file of this kind: it is written anew
    return Result(*parts)


def save(folder: Path, configuration: Configuration, key: dict[str, Any], result: Result) -> None:
    """Writes a result, whole or not at all. Raises OutputError."""
    arrays = {
        name: np.asarray(part, np.float64).tolist() for name, part in result._asdict().items()
    }
    text = json.dumps({"key": key, **arrays})  # with NaN, which Python reads again
    _files.write_file(folder / FOLDER / f"{configuration.name}.json", text + "\n")
