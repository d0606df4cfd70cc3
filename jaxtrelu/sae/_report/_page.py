"""The HTML file of a report: figures in one block of bytes, drawn by the page when looked at."""

import base64
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrelu import _files
from jaxtrelu.sae._evaluation import Evaluation, evaluate
from jaxtrelu.sae._model import Autoencoder, matrix
from jaxtrelu.sae._report._collect import Gathered, gather
from jaxtrelu.sae._rows import Rows
from jaxtrelu.sae._train import judged_on

_PARTS = ("page.html", "page.css", "page.js")
_IMAGE_BYTES = 7_000_000  # of rows as images
_ATOM_BYTES = 2_500_000  # of decoder rows as images
_LABEL_BYTES = 3_000_000
_LARGEST_ENTRIES = 6  # shown of a row that is no image and has no label


def report(
    model: Autoencoder,
    x: Any,
    path: str | os.PathLike,
    *,
    targets: Any = None,
    image_shape: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    history: Mapping[str, Any] | None = None,
    title: str | None = None,
    rows: int = 50_000,
    on_rows: Callable[[int], None] | None = None,
) -> Path:
    """Writes a report on a model: one HTML file that needs no network and no server.

    It shows the figures of `evaluate`, the curves of the training, thresholds against how often
    features are open, a list of all features to sort and to filter, and of each feature the
    histogram of its pre-activations with the threshold in it, the rows in which it is largest, and
    the features whose decoder rows are nearest.

    Args:
      model: an `Autoencoder`.
      x: (n, d), one example per row: an array, a path, or `Rows`. Figures are of the rows that were
        kept aside when the model was trained on x, if any; the rest is of all rows.
      path: of the file.
      targets: (n, d_out), what a transcoder should make of the rows, of the same kinds as x; None:
        the rows.
      image_shape: (height, width) or (height, width, channels), where each row is an image, with 1
        or 3 channels; None: rows are no images.
      labels: a text for each row, to be shown in place of its numbers.
      history: the columns of the training's history; None: those of `model.training`, if any.
      title: of the page; None: from what the model was trained on.
      rows: how many rows to look at, about, from all over the data.
      on_rows: called with the number of rows done since the last call; every row that is looked at
        counts twice.

    Returns:
      The path.

    Raises:
      ValueError: shapes or lengths do not go together, or rows are not finite.
      OSError: the file cannot be written.
    """
    array = matrix(x)
    shape = _image_shape(image_shape, model.dimension)
    if labels is not None and len(labels) != len(array):
        raise ValueError(
            f"there should be one label for each of the {len(array):,} rows, but there are "
            f"{len(labels):,}."
        )
    try:
        path = _files.check_file(path)
    except _files.OutputError as error:
        raise OSError(str(error)) from None
    seen, wanted = judged_on(model, x, targets)
    judged = evaluate(model, seen, targets=wanted)
    found = gather(model, x, rows, on_rows)
    if history is None and model.training is not None:
        history = model.training.history
    arrays = _feature_arrays(model, judged, found)
    arrays |= _row_arrays(array, found, shape, labels)
    if shape is not None and model.output_dimension == model.dimension:
        arrays["atoms"] = _atoms(np.asarray(model.weights.decoder), found.density)
    name = x.name if isinstance(x, Rows) else getattr(x, "name", None)
    if isinstance(x, str | os.PathLike):
        name = os.path.basename(os.fspath(x))
    known = model.about.get("training", {})
    if targets is not None and title is None:
        made = targets.name if isinstance(targets, Rows) else known.get("targets", "targets")
        if isinstance(targets, str | os.PathLike):
            made = os.path.basename(os.fspath(targets))
        made = str(made).strip("`")
        title = f"Transcoder from {name or known.get('data', 'some data')} to {made}"
    about = {
        "title": title or f"Sparse autoencoder of {name or known.get('data', 'some data')}",
        "outputs": model.output_dimension if targets is not None else None,
        "skip": model.skip is not None,
        "features": model.features,
        "dimension": model.dimension,
        "rows": len(array),
        "looked": found.rows,
        "judged": "all rows" if seen is x else "rows kept aside in training",
        "trained": _plain(known),
        "recipe": None if model.recipe is None else model.recipe.name,
        "metrics": [(n, _plain(v)) for n, v in judged.numbers().items()],
        "history": _history(history),
        "image": shape,
        "labels": None if labels is None else _labels(labels, arrays["kept"]),
    }
    try:
        return _files.write_file(path, _html(about, arrays))
    except _files.OutputError as error:
        raise OSError(str(error)) from None


def _image_shape(shape: Sequence[int] | None, dimension: int) -> list[int] | None:
    if shape is None:
        return None
    sides = [*map(int, shape), 1][:3] if len(shape) in (2, 3) else []
    if not sides or min(sides) < 1 or sides[2] not in (1, 3) or math.prod(sides) != dimension:
        raise ValueError(
            f"`image_shape` should be height and width, and 1 or 3 channels, of rows with "
            f"{dimension} columns, but is {tuple(shape)}."
        )
    return sides


def _feature_arrays(model: Autoencoder, judged: Evaluation, found: Gathered) -> dict[str, Any]:
    counts = found.histogram
    narrow = np.uint16 if counts.max(initial=0) < 1 << 16 else np.uint32
    floats = {
        "threshold": model.threshold,
        "density": found.density,
        "mean": found.mean,
        "largest": found.largest,
        "cosine": judged.encoder_decoder_cosine,
        "nearest": found.near_cosine[:, 0] if found.near.size else np.full(len(counts), np.nan),
        "bias": judged.encoder_bias,
        "low": found.low,
        "high": found.high,
        "topValues": found.top_values,
        "nearCosines": found.near_cosine,
    }
    arrays = {name: np.asarray(value, np.float32) for name, value in floats.items()}
    return {**arrays, "histogram": counts.astype(narrow), "near": found.near.astype(np.int32)}


def _row_arrays(
    array: Any, found: Gathered, shape: list[int] | None, labels: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """The rows that are largest for some feature, each kept once."""
    top = found.top_rows
    if shape is not None:
        # The largest row of every feature comes first, then the second largest, ...
        room = _IMAGE_BYTES // math.prod(shape)
        order = top.T.reshape(-1)
        _, first = np.unique(order, return_index=True)
        kept = order[np.sort(first)]
        kept = np.sort(kept[kept >= 0][:room])
        rows = _read(array, kept)
        drawn = {"images": _bytes_of_images(rows)}
    else:
        kept = np.unique(top[top >= 0])
        drawn = {} if labels is not None else _largest_entries(_read(array, kept))
    place = np.searchsorted(kept, top).clip(0, max(0, len(kept) - 1))
    known = (kept[place] == top) if len(kept) else np.zeros(top.shape, bool)
    return {
        **drawn,
        "kept": kept.astype(np.float64),  # JavaScript's numbers
        "topRows": top.astype(np.float64),
        "topPlaces": np.where(known & (top >= 0), place, -1).astype(np.int32),
    }


def _read(array: Any, rows: np.ndarray) -> np.ndarray:
    return np.asarray(array[rows], np.float32)


def _bytes_of_images(rows: np.ndarray) -> np.ndarray:
    """uint8, on one scale for all: black to white, or with 0 in the middle if some are negative."""
    if not rows.size:
        return rows.astype(np.uint8)
    top = max(float(np.quantile(np.abs(rows), 0.995)), 1e-12)
    scaled = rows / top
    if (rows < 0).any():
        scaled = (scaled + 1) / 2
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def _atoms(decoder: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Decoder rows as images, 0 in the middle, each on its own scale; as many as there is room.

    All of them, or none: which ones are there would be hard to say.
    """
    if decoder.size > _ATOM_BYTES:
        return np.zeros(0, np.uint8)
    top = np.abs(decoder).max(axis=1, keepdims=True)
    scaled = decoder / np.where(top > 0, top, 1)
    return np.round(127.5 + 127.5 * scaled).astype(np.uint8)


def _largest_entries(rows: np.ndarray) -> dict[str, np.ndarray]:
    count = min(_LARGEST_ENTRIES, rows.shape[1])
    if not len(rows):
        return {}
    which = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(rows, which, 1)
    return {"entries": which.astype(np.int32), "entryValues": values.astype(np.float32)}


def _labels(labels: Sequence[str], kept: np.ndarray) -> list[str]:
    """Those of the rows that are shown, cut so that they fit."""
    longest = max(24, _LABEL_BYTES // max(1, len(kept)))
    texts = (str(labels[int(row)]) for row in kept)
    return [text if len(text) <= longest else text[: longest - 1] + "…" for text in texts]


def _history(history: Mapping[str, Any] | None) -> dict[str, list[float | None]] | None:
    if history is None or not len(history.get("step", ())):
        return None
    return {name: [_plain(float(v)) for v in column] for name, column in history.items()}


def _plain(value: Any) -> Any:
    """A value that JSON has: None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _html(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    folder = resources.files("jaxtrelu.sae._report")
    page, style, script = (folder.joinpath(name).read_text("utf-8") for name in _PARTS)
    table, parts, place = {}, [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        table[name] = [array.dtype.name, place, array.size]
        data += bytes(-len(data) % 8)  # typed arrays begin at a multiple of their item's size
        parts.append(data)
        place += len(data)
    # No text can end the element that it stands in, or begin another.
    text = json.dumps({**about, "arrays": table}, allow_nan=False, ensure_ascii=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    pieces = {
        "{{title}}": _escaped(about["title"]),
        "{{style}}": style,
        "{{about}}": text,
        "{{bytes}}": base64.b64encode(b"".join(parts)).decode("ascii"),
        "{{script}}": script,
    }
    # In one go: what is put in is not looked through for more places.
    out, rest = [], page
    for mark, piece in pieces.items():
        before, found, rest = rest.partition(mark)
        assert found, mark
        out += [before, piece]
    return "".join([*out, rest])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
