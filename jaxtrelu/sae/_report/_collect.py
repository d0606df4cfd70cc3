"""The figures of every feature that a report shows, gathered in two passes over the rows."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxtrelu.sae._model import Autoencoder, check_finite, matrix

_BLOCK_ENTRIES = 1 << 24  # of a latent at once: 64 MB
_PIECE = 64  # rows taken in one piece where not all are
_COSINE_ROWS = 1024
_FULL_DETAIL = 16_384  # features; with more, fewer things are shown of each, for the file's size


@dataclasses.dataclass(frozen=True)
class Detail:
    """How much is shown of each feature."""

    bins: int
    top: int
    near: int

    @classmethod
    def of(cls, features: int) -> "Detail":
        """As much as keeps the file small."""
        share = min(1.0, _FULL_DETAIL / features)
        return cls(max(12, round(48 * share)), max(2, round(12 * share)), max(2, round(6 * share)))


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Figures of every feature, NumPy arrays with m rows; θ and π in the units of pre-activations.

    Attributes:
      rows: how many rows were looked at.
      density: the share of them in which the feature is open.
      mean: of its value where it is open; 0 if it never is.
      largest: of its values.
      low, high: the smallest and the largest pre-activation, the ends of the histogram.
      histogram: (m, bins): how many rows have π in each of the equal parts of [low, high].
      top_rows: (m, top), numbers of rows, largest value first; -1 where there are no more.
      top_values: (m, top).
      near: (m, near), the features whose decoder rows have the largest cosines.
      near_cosine: (m, near).
    """

    rows: int
    density: np.ndarray
    mean: np.ndarray
    largest: np.ndarray
    low: np.ndarray
    high: np.ndarray
    histogram: np.ndarray
    top_rows: np.ndarray
    top_values: np.ndarray
    near: np.ndarray
    near_cosine: np.ndarray


def gather(
    model: Autoencoder, x: Any, limit: int, on_rows: Callable[[int], None] | None = None
) -> Gathered:
    """Looks at the rows, or at `limit` of them from all over the data.

    Args:
      model: an `Autoencoder`.
      x: (n, d), a path, or `Rows`.
      limit: how many rows at most, about.
      on_rows: called with the number of rows done since the last call; each is looked at twice.

    Returns:
      `Gathered`.

    Raises:
      ValueError: there are no rows, some are not finite, or x does not have the model's columns.
    """
    array, detail = matrix(x), Detail.of(model.features)
    if array.ndim != 2 or array.shape[1] != model.dimension or not len(array):
        raise ValueError(
            f"x should have one example per row and {model.dimension} columns, as the model has, "
            f"but has shape {array.shape}."
        )
    bare = dataclasses.replace(model, recipe=None, about={}, training=None)
    m = model.features
    count = 0
    low, high = np.full(m, np.inf, np.float32), np.full(m, -np.inf, np.float32)
    opened, total = np.zeros(m, np.int64), np.zeros(m)
    values, rows = np.zeros((m, 0), np.float32), np.zeros((m, 0), np.int64)
    for numbers, block in _blocks(array, m, limit):
        check_finite(x, "x", numbers, block)
        found = _summary(bare, jnp.asarray(block), min(detail.top, len(block)))
        least, most, open_here, sums, best, where = (np.asarray(v) for v in found)
        low, high = np.minimum(low, least), np.maximum(high, most)
        opened, total = opened + open_here, total + sums
        values = np.concatenate([values, best], axis=1)
        rows = np.concatenate([rows, numbers[where]], axis=1)
        # Stable, and blocks come in order: of equal values the earlier row is first.
        order = np.argsort(-values, axis=1, kind="stable")[:, : detail.top]
        values, rows = (np.take_along_axis(a, order, 1) for a in (values, rows))
        count += len(block)
        if on_rows:
            on_rows(len(block))
    bins = np.zeros(m * detail.bins, np.int64)
    for _, block in _blocks(array, m, limit):
        places = np.asarray(_places(bare, jnp.asarray(block), low, high, detail.bins))
        bins += np.bincount(places.reshape(-1), minlength=len(bins))
        if on_rows:
            on_rows(len(block))
    near, cosine = nearest(np.asarray(model.weights.decoder), detail.near)
    return Gathered(
        rows=count,
        density=opened / count,
        mean=total / np.maximum(opened, 1),
        largest=np.maximum(values[:, 0], 0),
        low=low,
        high=high,
        histogram=bins.reshape(m, detail.bins),
        top_rows=np.where(values > 0, rows, -1),
        top_values=np.where(values > 0, values, 0),
        near=near,
        near_cosine=cosine,
    )


def _blocks(array: Any, features: int, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers of the rows, rows), ascending: all, or pieces at equal distances."""
    size = max(1, _BLOCK_ENTRIES // max(features, array.shape[1]))
    if len(array) <= limit:
        for start in range(0, len(array), size):
            block = np.asarray(array[start : start + size], np.float32)
            yield np.arange(start, start + len(block)), block
        return
    piece = min(_PIECE, limit, size)
    starts = np.linspace(0, len(array) - piece, max(1, limit // piece)).astype(np.int64)
    together = max(1, size // piece)
    for first in range(0, len(starts), together):
        chosen = starts[first : first + together]
        parts = [np.asarray(array[s : s + piece], np.float32) for s in chosen]
        numbers = (chosen[:, None] + np.arange(piece)).reshape(-1)
        yield numbers, np.concatenate(parts)


@partial(jax.jit, static_argnums=2)
def _summary(model: Autoencoder, x: Array, top: int) -> tuple[Array, ...]:
    pi = model.pre_activations(x)
    is_open = pi > model.threshold
    features = jnp.where(is_open, pi, 0)
    values, where = jax.lax.top_k(features.T, top)
    return (
        jnp.min(pi, axis=0),
        jnp.max(pi, axis=0),
        jnp.sum(is_open, axis=0, dtype=jnp.int32),
        jnp.sum(features, axis=0),
        values,
        where,
    )


@partial(jax.jit, static_argnums=4)
def _places(model: Autoencoder, x: Array, low: Array, high: Array, bins: int) -> Array:
    """Of each entry, its place among all bins of all features, int32."""
    width = jnp.where(high > low, high - low, 1)
    part = ((model.pre_activations(x) - low) / width * bins).astype(jnp.int32)
    return jnp.clip(part, 0, bins - 1) + jnp.arange(len(low)) * bins


def nearest(decoder: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the others with the largest cosines.

    Args:
      decoder: (m, d).
      count: how many.

    Returns:
      Their numbers, int32, and cosines, float32, both (m, min(count, m − 1)), largest first.
    """
    norm = np.linalg.norm(decoder, axis=1, keepdims=True)
    unit = jnp.asarray(decoder / np.where(norm > 0, norm, 1))
    count = min(count, len(unit) - 1)
    if not count:
        return np.zeros((len(unit), 0), np.int32), np.zeros((len(unit), 0), np.float32)
    parts = [_near(unit, s, min(_COSINE_ROWS, len(unit)), count) for s in _starts(len(unit))]
    cosine, which = (np.concatenate([np.asarray(p[i]) for p in parts]) for i in (0, 1))
    return which[: len(unit)].astype(np.int32), cosine[: len(unit)]


def _starts(count: int) -> range:
    return range(0, count, _COSINE_ROWS)


@partial(jax.jit, static_argnums=(2, 3))
def _near(unit: Array, start: Any, size: int, count: int) -> tuple[Array, Array]:
    # Past the end the last row comes again; the caller cuts it off.
    numbers = start + jnp.arange(size)
    cosines = unit[jnp.minimum(numbers, len(unit) - 1)] @ unit.T
    itself = numbers[:, None] == jnp.arange(len(unit))
    values, which = jax.lax.top_k(jnp.where(itself, -jnp.inf, cosines), count)
    return values, which
