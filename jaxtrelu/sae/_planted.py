"""A synthetic world of planted features, in which the right answer is known.

An example is a sparse sum of ground-truth directions: feature i is present with probability p_i,
and p falls as a power of the rank (Zipf), as the features of language models do. Scores compare
what an autoencoder learned with what was planted.

Source: the set-up of SynthSAEBench (arXiv 2602.14687), without its hierarchy of features.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float


@dataclasses.dataclass(frozen=True)
class PlantedWorld:
    """Ground-truth directions with Zipf-distributed firing.

    Args:
      features: number of planted directions, n.
      dimension: d of the examples; fewer than n makes directions overlap (superposition).
      mean_l0: expected number of features present in an example.
      exponent: p_i ∝ (i + 1)^−exponent.
      magnitude_deviation: magnitudes are |1 + deviation · normal|.
      noise: standard deviation of Gaussian noise, per coordinate.
      seed: of the directions.
    """

    features: int = 128
    dimension: int = 64
    mean_l0: float = 6.0
    exponent: float = 0.7
    magnitude_deviation: float = 0.2
    noise: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.features, self.dimension) < 1:
            raise ValueError(
                "`features` and `dimension` should be at least 1, but are "
                f"{self.features} and {self.dimension}."
            )
        if not 0 < self.mean_l0 <= self.features / 2:
            raise ValueError(
                "`mean_l0` should be greater than 0 and at most half of the number of features "
                f"({self.features}), but is {self.mean_l0}."
            )

    @property
    def directions(self) -> Array:
        """(n, d), rows of unit norm, drawn uniformly from the sphere."""
        # Not the bare key: an autoencoder that draws its first weights from the same seed would
        # start at the answer.
        key = jax.random.fold_in(jax.random.key(self.seed), 0x706C616E)
        raw = jax.random.normal(key, (self.features, self.dimension), jnp.float32)
        return raw / jnp.linalg.norm(raw, axis=1, keepdims=True)

    @property
    def probabilities(self) -> np.ndarray:
        """(n,): how often each feature is present; sums to `mean_l0`, none above 0.9."""
        shape = np.arange(1.0, self.features + 1) ** -self.exponent
        low, high = 0.0, self.features * self.mean_l0
        for _ in range(100):  # bisection for the factor that the cap at 0.9 calls for
            middle = (low + high) / 2
            enough = np.minimum(middle * shape, 0.9).sum() > self.mean_l0
            low, high = (low, middle) if enough else (middle, high)
        return np.minimum(high * shape, 0.9).astype(np.float32)

    def sample(self, key: Array, count: int) -> tuple[Array, Array]:
        """Draws `count` examples.

        Args:
          key: a key of `jax.random`.
          count: the number of examples.

        Returns:
          Inputs (count, d) and the planted magnitudes (count, n), 0 where a feature is absent.
        """
        which, size, noise = jax.random.split(key, 3)
        shape = (count, self.features)
        present = jax.random.uniform(which, shape) < jnp.asarray(self.probabilities)
        size = jnp.abs(1 + self.magnitude_deviation * jax.random.normal(size, shape))
        magnitudes = jnp.where(present, size, 0)
        inputs = magnitudes @ self.directions
        inputs += self.noise * jax.random.normal(noise, inputs.shape)
        return inputs, magnitudes


class PlantedScores(NamedTuple):
    """How well planted features were found. Every score is between 0 and 1, 1 the best."""

    f1: float
    """Mean over planted features of the F1 of its partner's gate as a detector of its presence."""
    precision: float
    """Mean share of the partner's openings at which the feature was present."""
    recall: float
    """Mean share of the feature's presences at which the partner was open."""
    mean_correlation: float
    """Mean |cosine| of a planted direction and its partner's decoder row."""


def planted_scores(
    decoder: Float[Array | np.ndarray, "m d"],
    gates: Bool[Array | np.ndarray, "examples m"],
    directions: Float[Array | np.ndarray, "n d"],
    present: Bool[Array | np.ndarray, "examples n"],
) -> PlantedScores:
    """Scores a dictionary against the planted one.

    Each planted direction is given one learned row as partner, no row twice, such that the sum of
    |cosine| is largest (the assignment problem); a direction left without partner scores 0.

    Args:
      decoder: learned rows, (m, d).
      gates: which learned features are open, bool (examples, m).
      directions: planted rows, (n, d).
      present: which planted features are present, bool (examples, n).

    Returns:
      `PlantedScores`, means over the planted directions.
    """
    # SciPy comes with JAX, but is slow to import.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    learned, planted = (_unit(np.asarray(rows, np.float64)) for rows in (decoder, directions))
    gates, present = np.asarray(gates, bool), np.asarray(present, bool)
    cosine = np.abs(planted @ learned.T)
    rows, partners = linear_sum_assignment(-cosine)
    scores = np.zeros((4, len(planted)))
    truth, found = present[:, rows], gates[:, partners]
    hits = (truth & found).sum(0)
    opened, wanted = found.sum(0), truth.sum(0)
    scores[0, rows] = 2 * hits / np.maximum(opened + wanted, 1)
    scores[1, rows] = hits / np.maximum(opened, 1)
    scores[2, rows] = hits / np.maximum(wanted, 1)
    scores[3, rows] = cosine[rows, partners]
    return PlantedScores(*scores.mean(axis=1).tolist())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
