"""A synthetic world of any size, made on the fly: Zipf firing, hierarchy, correlation, overlap.

The set-up of SynthSAEBench (arXiv 2602.14687), in JAX and without stored data: an example is a
sparse sum of planted directions, whose presence is correlated and, in trees, hangs on that of a
parent. `PlantedWorld` is the small world without either.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

from jaxtrelu.sae._model import Autoencoder
from jaxtrelu.sae._weights import unit_rows

_EXAMPLES = 1024  # scored at once


@dataclasses.dataclass(frozen=True)
class SyntheticWorld:
    """Planted directions that overlap, fire by Zipf's law, in trees and not independently.

    Feature i is present where a Gaussian copula of low rank says so, with probability p_i, and its
    parent in the tree, if it has one, is present. Parents stand before their children in the order
    of frequency; features that are in no tree come last. p_i is what is said of the feature alone:
    a child's frequency is smaller, by the share of the examples in which its parents are absent.

    Args:
      features: number of planted directions, n.
      dimension: d of the examples; fewer than n makes directions overlap (superposition).
      most, least: the largest and the smallest p_i.
      exponent: p_i falls from `most` as (i + 1)^−exponent, shifted to end at `least`.
      roots, branching, depth: of the hierarchy: that many trees, in which each node has `branching`
        children down to `depth` levels below the root; 0 roots: none.
      rank: of the correlation between features; 0: independent.
      correlation: the share of a feature's latent variance that the common factors have.
      magnitude_deviation: magnitudes are |1 + deviation · normal|.
      noise: standard deviation of Gaussian noise, per coordinate.
      seed: of the directions and the correlation.

    Raises:
      ValueError: an argument is out of its range, or the trees need more features than there are.
    """

    features: int = 16_384
    dimension: int = 768
    most: float = 0.4
    least: float = 5e-4
    exponent: float = 0.5
    roots: int = 128
    branching: int = 4
    depth: int = 3
    rank: int = 25
    correlation: float = 0.1
    magnitude_deviation: float = 0.2
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.features, self.dimension) < 1:
            raise ValueError(
                "`features` and `dimension` should be at least 1, but are "
                f"{self.features} and {self.dimension}."
            )
        if not 0 < self.least <= self.most < 1:
            raise ValueError(
                "`least` and `most` should be probabilities, in this order, but are "
                f"{self.least} and {self.most}."
            )
        if min(self.roots, self.depth, self.rank) < 0 or not 0 <= self.correlation < 1:
            raise ValueError(
                "`roots`, `depth` and `rank` should be at least 0, and `correlation` in [0, 1), "
                f"but are {self.roots}, {self.depth}, {self.rank} and {self.correlation}."
            )
        if self.in_trees > self.features:
            raise ValueError(
                f"the trees need {self.in_trees} features, and there are {self.features}: pass "
                "fewer `roots`, or a smaller `branching` or `depth`."
            )

    @property
    def in_trees(self) -> int:
        """How many features are in a tree."""
        return self.roots * sum(self.branching**level for level in range(self.depth + 1))

    @property
    def parents(self) -> np.ndarray:
        """(n,), int32: the parent of each feature; −1 for roots and for what is in no tree."""
        parents = np.full(self.features, -1, np.int32)
        start, size = 0, self.roots
        for _ in range(self.depth):
            children = np.arange(size * self.branching)
            parents[start + size + children] = start + children // self.branching
            start, size = start + size, size * self.branching
        return parents

    @property
    def probabilities(self) -> np.ndarray:
        """(n,): p_i, float32, from `most` down to `least`."""
        shape = np.arange(1.0, self.features + 1) ** -self.exponent
        span = (shape - shape[-1]) / max(shape[0] - shape[-1], 1e-30)
        return (self.least + (self.most - self.least) * span).astype(np.float32)

    @property
    def directions(self) -> Array:
        """(n, d), rows of unit norm, drawn uniformly from the sphere."""
        shape = (self.features, self.dimension)
        return unit_rows(jax.random.normal(self._key(0), shape, jnp.float32))

    @property
    def loadings(self) -> Array:
        """(n, rank): of the latent normals on common factors; squared norms are `correlation`."""
        raw = jax.random.normal(self._key(1), (self.features, self.rank), jnp.float32)
        return self.correlation**0.5 * unit_rows(raw)

    def sample(self, key: Array, count: int) -> tuple[Array, Array]:
        """Draws `count` examples.

        Args:
          key: a key of `jax.random`.
          count: the number of examples.

        Returns:
          Inputs (count, d) and the planted magnitudes (count, n), 0 where a feature is absent.
        """
        return _sample(self, key, count)

    def rows(self, key: Array, count: int) -> np.ndarray:
        """Inputs alone, made in blocks so that no magnitudes of all of them are in memory.

        Args:
          key: a key of `jax.random`.
          count: the number of examples.

        Returns:
          (count, d), float32, in NumPy.
        """
        starts = range(0, count, _EXAMPLES)
        blocks = [_sample(self, jax.random.fold_in(key, s), _EXAMPLES)[0] for s in starts]
        return np.concatenate([np.asarray(block) for block in blocks])[:count]

    def _key(self, which: int) -> Array:
        # Not the bare key: an autoencoder that draws its first weights from the same seed would
        # start at the answer.
        return jax.random.fold_in(jax.random.key(self.seed), 0x73796E74 + which)


@partial(jax.jit, static_argnums=(0, 2))
def _sample(world: SyntheticWorld, key: Array, count: int) -> tuple[Array, Array]:
    common, own, size, noise = jax.random.split(key, 4)
    shape = (count, world.features)
    latent = (1 - world.correlation * (world.rank > 0)) ** 0.5 * jax.random.normal(own, shape)
    if world.rank:
        latent += jax.random.normal(common, (count, world.rank)) @ world.loadings.T
    present = latent > ndtri(1 - jnp.asarray(world.probabilities))
    parents = world.parents
    # Level by level: a parent's own presence is settled before its children's.
    start, level = world.roots, world.roots * world.branching
    for _ in range(world.depth if world.roots else 0):
        below = slice(start, start + level)
        present = present.at[:, below].set(present[:, below] & present[:, parents[below]])
        start, level = start + level, level * world.branching
    size = jnp.abs(1 + world.magnitude_deviation * jax.random.normal(size, shape))
    magnitudes = jnp.where(present, size, 0)
    x = magnitudes @ world.directions
    return x + world.noise * jax.random.normal(noise, x.shape), magnitudes


class SyntheticScores(NamedTuple):
    """How well an autoencoder knows a world."""

    r2: float
    """Explained variance of the inputs."""
    mcc: float
    """Mean |cosine| of planted directions and decoder rows in the best one-to-one matching."""
    uniqueness: float
    """Share of the living features whose nearest planted direction is no other one's, too: the
    number of different ones by the number of living features."""
    precision: float
    """Of each living feature as a detector of its nearest direction; mean over them."""
    recall: float
    """The same."""
    f1: float
    """The same: 2 · precision · recall / (precision + recall). SynthSAEBench's own code takes these
    three over all features, with 0 for a dead one: times 1 − `dead`, they are that."""
    l0: float
    """Mean number of open features."""
    true_l0: float
    """Mean number of planted features that are present."""
    dead: float
    """Share of the features that are open in none of the examples."""
    shrinkage: float
    """Mean ‖x̂‖ / ‖x‖; below 1: shrinks."""


def synthetic_scores(
    model: Autoencoder, world: SyntheticWorld, key: Array, examples: int = 16_384
) -> SyntheticScores:
    """Scores a model on examples that are drawn for it.

    Args:
      model: an `Autoencoder` of the world's inputs.
      world: the world.
      key: a key of `jax.random`, another one than that of the training's examples.
      examples: how many, about: whole blocks of 1024.

    Returns:
      `SyntheticScores`.
    """
    nearest, mcc = _matched(np.asarray(model.weights.decoder), np.asarray(world.directions))
    partner = jnp.asarray(nearest)
    bare = dataclasses.replace(model, recipe=None, about={}, training=None)
    blocks = max(1, examples // _EXAMPLES)
    sums: Any = None
    for block in range(blocks):
        x, magnitudes = world.sample(jax.random.fold_in(key, block), _EXAMPLES)
        found = [np.asarray(v, np.float64) for v in _counted(bare, x, magnitudes > 0, partner)]
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    return _scores(nearest, mcc, blocks * _EXAMPLES, *sums)


def _scores(
    nearest: np.ndarray,
    mcc: float,
    rows: int,
    hits: np.ndarray,
    opened: np.ndarray,
    wanted: np.ndarray,
    error: np.ndarray,
    total: np.ndarray,
    square: np.ndarray,
    ratio: np.ndarray,
    present: np.ndarray,
) -> SyntheticScores:
    living = opened > 0
    count = max(1, int(living.sum()))
    precision = hits / np.maximum(opened, 1)
    recall = hits / np.maximum(wanted, 1)
    f1 = 2 * hits / np.maximum(opened + wanted, 1)
    variance = float(square) - float(total @ total) / rows
    return SyntheticScores(
        r2=1 - float(error) / variance if variance > 0 else float("nan"),
        mcc=mcc,
        uniqueness=len(np.unique(nearest[living])) / count,
        precision=float(precision[living].sum()) / count,
        recall=float(recall[living].sum()) / count,
        f1=float(f1[living].sum()) / count,
        l0=float(opened.sum()) / rows,
        true_l0=float(present) / rows,
        dead=float((~living).mean()),
        shrinkage=float(ratio) / rows,
    )


@jax.jit
def _counted(model: Autoencoder, x: Array, present: Array, partner: Array) -> tuple[Array, ...]:
    features = model.encode(x)
    out = model.decode(features, x)
    gates, truth = features > 0, present[:, partner]
    norm = jnp.linalg.norm(x, axis=1)
    ratio = jnp.where(norm > 0, jnp.linalg.norm(out, axis=1) / jnp.where(norm > 0, norm, 1), 1)
    return (
        jnp.sum(gates & truth, axis=0),
        jnp.sum(gates, axis=0),
        jnp.sum(truth, axis=0),
        jnp.sum((x - out) ** 2),
        jnp.sum(x, axis=0),
        jnp.sum(x**2),
        jnp.sum(ratio),
        jnp.sum(present),
    )


def _matched(decoder: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, float]:
    """(the nearest direction of each decoder row, mean |cosine| of the best matching)."""
    # SciPy comes with JAX, but is slow to import.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    norm = np.linalg.norm(decoder, axis=1, keepdims=True)
    cosine = np.abs(decoder / np.where(norm > 0, norm, 1) @ directions.T)
    rows, columns = linear_sum_assignment(-cosine)
    return cosine.argmax(axis=1), float(cosine[rows, columns].mean())
