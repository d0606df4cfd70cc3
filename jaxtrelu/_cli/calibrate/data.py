"""The rows of `jaxtrelu calibrate`, read block by block, and the thresholds found from them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np

from jaxtrelu import theory, thresholded_relu
from jaxtrelu._cli import UserError
from jaxtrelu._primitive.spec import VariantName

_BLOCK = 2**22  # numbers read at a time


@dataclasses.dataclass(frozen=True)
class Found:
    """Thresholds for one wish: one number or one a channel, and what each set of rows makes of it.

    Attributes:
        wanted: the share of zeros, or the error of the next layer, that was asked for.
        threshold: (channels,), or ().
        used: the share of zeros of each channel, on the rows that it was found from.
        held_out: the same on the others; None if there are none.
        errors: of the next layer, on the rows used and held out, where such an error was asked for.
    """

    wanted: float
    threshold: np.ndarray
    used: np.ndarray
    held_out: np.ndarray | None
    errors: tuple[float, float | None] | None = None


class Rows:
    """The file's rows, divided into those to calibrate on and those held out."""

    def __init__(self, path: str, name: str | None, share: float, seed: int):
        array = open_array(path, name)
        if array.dtype.kind != "f":
            raise UserError(
                f"{path} should hold floating-point numbers, but its dtype is {array.dtype}."
            )
        if array.ndim == 0 or not array.size:
            raise UserError(f"{path} should hold rows of numbers, but its shape is {array.shape}.")
        self.path, self.share, self.seed = path, share, seed
        self._lines = math.prod(array.shape[1:-1])  # of one row of the file
        self.array = array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)
        self.used, self.held_out = (sum(len(b) for b in self.blocks(held)) for held in (0, 1))
        if not self.used or (share and not self.held_out):
            raise UserError(
                f"{path} has {len(self.array)} rows, too few to hold out a share of {share:g}: "
                "pass --held-out 0."
            )

    @property
    def channels(self) -> int:
        """How many numbers a row has."""
        return self.array.shape[1]

    def blocks(self, held_out: bool | int) -> Iterator[np.ndarray]:
        """The rows of one of the two sets, in blocks; the same ones each time.

        Raises:
            UserError: a row of the file holds NaN or infinity.
        """
        step = max(1, _BLOCK // self.channels)
        for number, start in enumerate(range(0, len(self.array), step)):
            block = self.array[start : start + step]
            draws = np.random.default_rng([self.seed, number]).random(len(block))
            # In the precision of the network: a threshold is compared with what was rounded to it.
            rounded = to_float32(block)
            check_finite(self.path, rounded, partial(self._row, start))
            yield rounded[(draws < self.share) == bool(held_out)]

    def _row(self, first: int, line: int) -> int:
        """The row of the file that a line of channels belongs to."""
        return (first + line) // self._lines


def to_float32(array: np.ndarray) -> np.ndarray:
    """The same numbers rounded; what is too large becomes infinity."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def check_finite(path: str, lines: np.ndarray, row_of: Callable[[int], int]) -> None:
    """Raises UserError for a line that is not finite; `row_of` has its number in the file."""
    wrong = ~np.isfinite(lines).all(axis=tuple(range(1, lines.ndim)))
    if wrong.any():
        raise UserError(
            f"{path} holds NaN or infinity in row {row_of(int(wrong.argmax()))} (counted from 0), "
            "as float32: remove or repair such rows."
        )


def open_array(path: str, name: str | None) -> np.ndarray:
    """The array of a .npy file, on the disk still, or one of an .npz file. Raises UserError."""
    try:
        # A .npy file stays on the disk; what an .npz file holds is read when asked for.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from None
    except (ValueError, EOFError):
        raise UserError(f"{path} should be a .npy or .npz file of numbers.") from None
    if isinstance(loaded, np.ndarray):
        if name is not None:
            raise UserError(f"--array is for .npz files, but {path} holds one array.")
        return loaded
    names = loaded.files
    if name is None and len(names) != 1:
        raise UserError(f"{path} holds {len(names)} arrays: pass --array, one of {names}.")
    if name is not None and name not in names:
        raise UserError(f"{path} has no array {name!r}: pass --array, one of {names}.")
    try:
        return loaded[name or names[0]]
    except ValueError:
        raise UserError(f"{name or names[0]} of {path} should hold numbers.") from None


def calibrate(
    rows: Rows, sparsities: list[float], method: str, per_channel: bool
) -> tuple[list[Found], float]:
    """What was found for each share, and by how much the method may miss it on the rows used.

    Raises:
        ValueError: values that are all equal.
    """
    thresholds, error = _METHODS[method](rows, sparsities, per_channel)
    used = _shares(rows, 0, thresholds)
    held_out = _shares(rows, 1, thresholds) if rows.held_out else [None] * len(sparsities)
    cells = zip(sparsities, thresholds, used, held_out, strict=True)
    return [Found(*cell) for cell in cells], error


def calibrate_to_error(
    rows: Rows, errors: list[float], weights: np.ndarray, variant: VariantName
) -> tuple[list[Found], float]:
    """The same for wanted errors of the layer behind, whose weights (channels, outputs) these are.

    Raises:
        ValueError: weights of another shape.
    """
    if weights.dtype.kind != "f":
        raise ValueError(f"--weights should hold floating-point numbers, not {weights.dtype}.")
    if weights.ndim != 2 or len(weights) != rows.channels:
        raise ValueError(
            f"--weights should have shape ({rows.channels}, outputs), a line for each channel, but "
            f"have {weights.shape}."
        )
    check_finite("--weights", to_float32(weights), int)
    used, held_out = (np.concatenate(list(rows.blocks(h))) for h in (0, 1))
    found = [theory.threshold_for_error(used, weights, e, variant=variant) for e in errors]
    thresholds = [np.asarray(one.threshold) for one in found]
    shares = _shares(rows, 0, thresholds)
    others: list[Any] = [None] * len(errors)
    if rows.held_out:
        others = _shares(rows, 1, thresholds)
    results = []
    for place, (wanted, one) in enumerate(zip(errors, found, strict=True)):
        there = None
        if rows.held_out:
            there = _error(held_out, weights, float(one.threshold), variant)
        reached = (float(one.error), there)
        results.append(Found(wanted, thresholds[place], shares[place], others[place], reached))
    return results, 0.0


def _error(rows: np.ndarray, weights: np.ndarray, threshold: float, variant: VariantName) -> float:
    """The relative error of the next layer's output, as `theory.threshold_for_error` defines it."""
    whole = np.asarray(thresholded_relu(rows, 0.0, variant=variant))
    kept = np.asarray(thresholded_relu(rows, threshold, variant=variant))
    return float(np.linalg.norm((kept - whole) @ weights) / np.linalg.norm(whole @ weights))


def _shares(rows: Rows, held_out: int, thresholds: list[np.ndarray]) -> list[np.ndarray]:
    closed = np.zeros((len(thresholds), rows.channels))
    count = 0
    for block in rows.blocks(held_out):
        count += len(block)
        for line, threshold in zip(closed, thresholds, strict=True):
            line += np.count_nonzero(block <= threshold, axis=0)
    return list(closed / count)


def _by_quantile(rows: Rows, sparsities, per_channel):
    data = np.concatenate(list(rows.blocks(0)))
    axis = 0 if per_channel else None
    found = [np.asarray(theory.quantile_threshold(data, s, axis=axis)) for s in sparsities]
    return found, 0.0


def _by_sketch(rows: Rows, sparsities, per_channel):
    sketch = theory.QuantileSketch(rows.channels if per_channel else None)
    for block in rows.blocks(0):
        sketch.update(block)
    return [np.asarray(sketch.threshold(s)) for s in sparsities], sketch.rank_error


def _by_gaussian(rows: Rows, sparsities, per_channel):
    axis = 0 if per_channel else None
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for block in rows.blocks(0):
        if not len(block):
            continue
        exact = block.astype(np.float64)
        size = len(block) if per_channel else block.size
        centre = exact.mean(axis)
        # Chan, Golub and LeVeque: the sums of squares about two means, put together.
        apart = centre - mean
        squares = (
            squares + ((exact - centre) ** 2).sum(axis) + apart**2 * count * size / (count + size)
        )
        mean = mean + apart * size / (count + size)
        count += size
    std = np.sqrt(squares / count)
    if not (std > 0).all():
        raise ValueError("all values of some channel are equal: no threshold divides them.")
    return [mean + std * NormalDist().inv_cdf(s) for s in sparsities], math.nan


_METHODS = {"quantile": _by_quantile, "sketch": _by_sketch, "gaussian": _by_gaussian}
