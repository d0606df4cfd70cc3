"""Data sets for classification: scikit-learn's own, or a user's `.npz` with X and y."""

import argparse
import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxtrelu._cli import UserError

BUNDLED = ("digits", "breast_cancer", "wine", "iris")
DEFAULT = "digits"
_REGRESSION = ("diabetes", "linnerud")
MAX_VALUES = 50_000_000  # of X, as float32: 200 MB
MAX_CLASSES = 1_000
# One row each to train on, to choose the learning rate by, and to test on.
MIN_ROWS_PER_CLASS = 3


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Rows to classify.

    Attributes:
        name: what the data set is called in tables and figures.
        features: float32 (rows, features), finite.
        labels: int32 (rows,), from 0 to classes - 1.
        classes: the number of classes.
    """

    name: str
    features: np.ndarray
    labels: np.ndarray
    classes: int


@dataclasses.dataclass(frozen=True)
class Split:
    """Row numbers of one stratified split: int32 (rows,) each, without overlap."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names what is trained on."""
    parser.add_argument(
        "--data",
        default=DEFAULT,
        metavar="NAME",
        help=f"{', '.join(BUNDLED)}, or the path of a .npz file with X (rows, features) "
        f"and y (rows,) (default: {DEFAULT})",
    )


def load(name: str) -> Dataset:
    """Loads a data set by its name, or from a path that ends in `.npz`.

    Raises:
        UserError: if there is no such data set, or it cannot be used to classify.
    """
    if name in BUNDLED:
        return _bundled(name)
    if name in _REGRESSION:
        raise UserError(
            f"{name} has a number as its target, which is regression; this command classifies: "
            f"pass --data {', '.join(BUNDLED)} or a .npz file with X and y."
        )
    if name.endswith(".npz"):
        arrays = _read_npz(Path(name).expanduser())
        try:
            return from_arrays(Path(name).stem, arrays["X"], arrays["y"])
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    if Path(name).suffix or Path(name).expanduser().exists():
        raise UserError(
            f"--data takes no file such as {name}, but a .npz file with X (rows, features) and y "
            "(rows,), as np.savez('data.npz', X=features, y=labels) writes it, or one of "
            f"{', '.join(BUNDLED)}."
        )
    raise UserError(
        f"there is no data set {name!r}: pass --data {', '.join(BUNDLED)} or the path of a .npz "
        "file with X and y."
    )


def _bundled(name: str) -> Dataset:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    return from_arrays(name, bunch.data, bunch.target)


def _read_npz(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > 8 * MAX_VALUES * 2:
            raise UserError(
                f"{path} unpacks to {size / 1e9:.1f} GB; X may hold at most {MAX_VALUES:,} values."
            )
        # Pickled objects can run code when they are loaded, so they are refused.
        with np.load(path, allow_pickle=False) as stored:
            missing = [key for key in ("X", "y") if key not in stored.files]
            if missing:
                found = ", ".join(stored.files) or "no arrays"
                raise UserError(
                    f"{path} holds {found} but not {' and '.join(missing)}: save it with "
                    "np.savez(path, X=features, y=labels)."
                )
            return {key: stored[key] for key in ("X", "y")}
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from None
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise UserError(
                f"{path} holds Python objects, which are not loaded because that can run code: "
                "save X and y as arrays of numbers."
            ) from None
        raise UserError(f"cannot read {path}: {error}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, MemoryError):
        raise UserError(f"{path} is not a readable .npz file: make it with np.savez.") from None


def from_arrays(name: str, x: np.ndarray, y: np.ndarray) -> Dataset:
    """Checks X and y and brings them into the form of `Dataset`. Raises UserError."""
    features = _features(x)
    labels = _labels(y)
    if len(features) != len(labels):
        raise UserError(
            f"X has {len(features)} rows but y has {len(labels)} labels: one label per row is "
            "needed."
        )
    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise UserError(f"y holds one class only ({names[0]}): classification needs two or more.")
    if len(names) > MAX_CLASSES:
        hint = "; is y a regression target?" if len(names) > len(labels) // 2 else ""
        raise UserError(
            f"y holds {len(names):,} classes; it may hold at most {MAX_CLASSES:,}{hint}"
            f"{'' if hint else '.'}"
        )
    if counts.min() < MIN_ROWS_PER_CLASS:
        rare = names[counts.argmin()]
        raise UserError(
            f"class {rare} has {counts.min()} row(s) of {len(labels)}: each class needs at least "
            f"{MIN_ROWS_PER_CLASS}, to train, validate and test on."
        )
    return Dataset(name, features, codes.astype(np.int32), len(names))


def _features(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise UserError(f"X should hold real numbers, but has dtype {x.dtype}.")
    if x.ndim < 2:
        raise UserError(f"X should have shape (rows, features), but has shape {x.shape}.")
    if x.size == 0:
        raise UserError(f"X is empty: its shape is {x.shape}.")
    if x.size > MAX_VALUES:
        raise UserError(f"X holds {x.size:,} values; it may hold at most {MAX_VALUES:,}.")
    x = x.reshape(len(x), -1)
    with np.errstate(over="ignore"):
        features = x.astype(np.float32)
    wrong = ~np.isfinite(features)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        others = int(wrong.sum()) - 1
        also = f" (and {others:,} more such values)" if others else ""
        raise UserError(
            f"X holds {x[row, column]} at row {row}, column {column}{also}, counted from 0: "
            "replace or drop what is not a finite float32."
        )
    return features


def _labels(y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise UserError(f"y should have shape (rows,), one label per row, but has shape {y.shape}.")
    if y.size == 0:
        raise UserError("y is empty.")
    if y.dtype.kind not in "biufUS":
        raise UserError(f"y should hold numbers or strings, but has dtype {y.dtype}.")
    if y.dtype.kind != "f":
        return y
    if not np.isfinite(y).all():
        row = int(np.argmin(np.isfinite(y)))
        raise UserError(f"y holds {y[row]} at row {row}, counted from 0: every row needs a label.")
    if (y != np.round(y)).any():
        raise UserError(
            f"y holds numbers with a fraction, such as {y[y != np.round(y)][0]}, which is "
            "regression; this command classifies: pass whole numbers or strings."
        )
    return y


def stratified_split(labels: np.ndarray, seed: int) -> Split:
    """Splits rows 3:1:1 at random, class by class, so that every part has every class.

    The sizes depend on the labels alone, so splits of several seeds can be stacked.
    """
    generator = np.random.default_rng(seed)
    parts: tuple[list, list, list] = ([], [], [])
    for label in range(labels.max() + 1):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out = max(1, round(len(rows) / 5))
        for part, chosen in zip(
            parts, np.split(rows, [len(rows) - 2 * held_out, len(rows) - held_out]), strict=True
        ):
            part.append(chosen)
    train, validation, test = (
        generator.permutation(np.concatenate(part)).astype(np.int32) for part in parts
    )
    return Split(train, validation, test)
