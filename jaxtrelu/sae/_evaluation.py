"""Figures of a model on rows: the metrics of SAEBench's core that need no language model.

Rows are streamed: per-row quantities are computed in float32, of each row in units of its own, and
summed in float64: so squares neither overflow nor vanish, whatever the scale of the data. Where the
code of SAEBench departs from its description, the description is followed: `Evaluation` says where.
"""

import dataclasses
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxtrelu.sae._model import Autoencoder, check_finite, check_targets, matrix
from jaxtrelu.sae._warn import warn

_COSINE_ROWS = 1024  # of a block of the matrix of all cosines
_NOT_MEASURED = -1.0  # SAEBench's own mark


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of a model on some rows; x is a row, x̂ its reconstruction, f its features.

    Attributes:
      rows: how many rows were looked at.
      explained_variance: 1 − mean ‖x − x̂‖² / mean ‖x − mean of x‖², over all rows at once;
        NaN, with a warning, where the rows do not differ or there is only one.
        (sae-bench 0.6.0 subtracts the square of the mean square in place of the mean.)
      mean_squared_error: mean over rows of ‖x − x̂‖². (sae-bench divides by the number of rows of a
        batch once more.)
      cosine_similarity: mean cosine of x and x̂.
      norm_in: mean ‖x‖.
      norm_out: mean ‖x̂‖.
      norm_ratio: mean ‖x̂‖ / ‖x‖; of a row of zeros ‖x̂‖. (sae-bench divides by 1 below 1e-4.)
      relative_reconstruction_bias: mean ‖x̂‖² / mean x · x̂; below 1: shrinkage.
      l0: mean number of open features.
      l1: mean of Σ f.
      over_1_percent: share of features that are open in more than 1 % of the rows.
      over_10_percent: the same for 10 %.
      alive_share: share of features that are open in at least one row; it grows with `rows`.
      density: (m,), the share of rows in which each feature is open.
      encoder_norm: (m,), norms of the encoder's rows.
      encoder_bias: (m,).
      encoder_decoder_cosine: (m,), of a feature's two rows; NaN for a transcoder to another width.
      max_encoder_cosine: (m,), the largest cosine of an encoder row to another one.
      max_decoder_cosine: (m,), the same of the decoder.
    """

    rows: int
    explained_variance: float
    mean_squared_error: float
    cosine_similarity: float
    norm_in: float
    norm_out: float
    norm_ratio: float
    relative_reconstruction_bias: float
    l0: float
    l1: float
    over_1_percent: float
    over_10_percent: float
    alive_share: float
    density: np.ndarray
    encoder_norm: np.ndarray
    encoder_bias: np.ndarray
    encoder_decoder_cosine: np.ndarray
    max_encoder_cosine: np.ndarray
    max_decoder_cosine: np.ndarray

    def __repr__(self) -> str:
        figures = ", ".join(f"{name}={value:.6g}" for name, value in self.numbers().items())
        return f"Evaluation({figures})"

    def numbers(self) -> dict[str, float]:
        """The figures that are numbers, by name, in order."""
        values = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in values if not isinstance(value, np.ndarray)}

    def to_saebench(self, model: Autoencoder | None = None) -> dict[str, Any]:
        """The figures in the schema of SAEBench's core evaluation, ready for JSON.

        What needs a language model or prompts, and the form of explained variance that SAEBench
        itself declares wrong, is -1, SAEBench's mark for what was not measured.

        Args:
          model: to note its sizes; None: they are left out.

        Returns:
          A dictionary of plain values.
        """
        over = [self.density > share for share in (0.01, 0.1)]
        total = max(float(self.density.sum()), 1e-30)
        cosines = [_mean(c) for c in (self.max_encoder_cosine, self.max_decoder_cosine)]
        metrics = {
            "model_behavior_preservation": _unmeasured(
                "kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"
            ),
            "model_performance_preservation": _unmeasured(
                "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"
            ),
            "reconstruction_quality": {
                "explained_variance": _number(self.explained_variance),
                "explained_variance_legacy": _NOT_MEASURED,
                "mse": self.mean_squared_error,
                "cossim": self.cosine_similarity,
            },
            "shrinkage": {
                "l2_norm_in": self.norm_in,
                "l2_norm_out": self.norm_out,
                "l2_ratio": self.norm_ratio,
                "relative_reconstruction_bias": self.relative_reconstruction_bias,
            },
            "sparsity": {"l0": self.l0, "l1": self.l1},
            "token_stats": {
                "total_tokens_eval_reconstruction": self.rows,
                "total_tokens_eval_sparsity_variance": self.rows,
            },
            "misc_metrics": {
                "freq_over_1_percent": self.over_1_percent,
                "freq_over_10_percent": self.over_10_percent,
                "normalized_freq_over_1_percent": float(self.density[over[0]].sum()) / total,
                "normalized_freq_over_10_percent": float(self.density[over[1]].sum()) / total,
                "average_max_encoder_cosine_sim": cosines[0],
                "average_max_decoder_cosine_sim": cosines[1],
                "frac_alive": self.alive_share,
            },
        }
        details = [
            {
                "index": index,
                "feature_density": float(self.density[index]),
                "consistent_activation_heuristic": _NOT_MEASURED,
                "encoder_bias": float(self.encoder_bias[index]),
                "encoder_norm": float(self.encoder_norm[index]),
                "encoder_decoder_cosine_sim": _number(self.encoder_decoder_cosine[index]),
                "max_decoder_cosine_sim": _number(self.max_decoder_cosine[index]),
                "max_encoder_cosine_sim": _number(self.max_encoder_cosine[index]),
            }
            for index in range(len(self.density))
        ]
        sizes = None
        if model is not None:
            sizes = {"architecture": "jumprelu", "d_in": model.dimension, "d_sae": model.features}
        return {
            "eval_type_id": "core",
            "eval_config": {
                "compute_l2_norms": True,
                "compute_sparsity_metrics": True,
                "compute_variance_metrics": True,
                "compute_featurewise_density_statistics": True,
                "compute_featurewise_weight_based_metrics": True,
            },
            "eval_id": str(uuid.uuid4()),
            "datetime_epoch_millis": int(time.time() * 1000),
            "eval_result_metrics": metrics,
            "eval_result_details": details,
            "sae_bench_commit_hash": "not run: measured by jaxtrelu",
            "sae_lens_id": None,
            "sae_lens_release_id": None,
            "sae_lens_version": None,
            "sae_cfg_dict": sizes,
            "eval_result_unstructured": None,
        }


class Dead(NamedTuple):
    """Features that were open in none of the rows that were looked at."""

    features: np.ndarray
    """Their numbers, int32."""
    rows: int
    """How many rows were looked at: it stops when every feature has been open once."""


def evaluate(
    model: Autoencoder,
    x: Any,
    *,
    targets: Any = None,
    on_rows: Callable[[int], None] | None = None,
) -> Evaluation:
    """The figures of a model on rows that it should not have been trained on.

    Args:
      model: an `Autoencoder`.
      x: (n, d), or the path of a `.npy` file of such a matrix; read in blocks.
      targets: (n, d_out), what a transcoder should have made of the rows; None: the rows, of an
        autoencoder.
      on_rows: called with the number of rows done since the last call.

    Returns:
      An `Evaluation`.

    Raises:
      ValueError: there are no rows, some are not finite (says which), shapes do not go together, or
        the model is a transcoder and there are no targets.
    """
    check_targets(model, targets)
    wanted = None if targets is None else matrix(targets, "`targets`")
    shape = (len(matrix(x)), model.output_dimension)
    if wanted is not None and wanted.shape != shape:
        raise ValueError(f"`targets` should have shape {shape}, but has shape {wanted.shape}.")
    rows = 0
    sums: dict[str, float] = {}
    counts = np.zeros(model.features, np.int64)
    total: Any = 0.0
    centre: Any = None
    for start, block in model._blocks(x):
        if not len(block):
            break
        y = block if wanted is None else np.asarray(wanted[start : start + len(block)], np.float32)
        if wanted is not None:
            check_finite(targets, "`targets`", np.arange(start, start + len(block)), y)
        measured, opened = _measure(model, block, y)
        exact = np.asarray(y, np.float64)
        if centre is None:
            centre = exact.mean(axis=0)  # sums around it lose no digits
        moved = exact - centre
        total = total + moved.sum(axis=0)
        found = {name: value.sum() for name, value in _in_units(measured).items()}
        found["around"] = np.einsum("nd,nd->", moved, moved)
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
        counts += np.asarray(opened, np.int64)
        rows += len(block)
        if on_rows:
            on_rows(len(block))
    if not rows:
        raise ValueError("there are no rows to evaluate on.")
    mean = {name: value / rows for name, value in sums.items()}
    variance = mean["around"] - float(total @ total) / rows**2
    if not variance > 0:
        what = "there is one row only" if rows == 1 else "all rows are the same"
        warn(f"explained_variance is NaN, as {what}: pass rows that differ.")
    density = counts / rows
    encoder, decoder = (np.asarray(w) for w in (model.weights.encoder, model.weights.decoder))
    return Evaluation(
        rows=rows,
        explained_variance=1 - mean["error"] / variance if variance > 0 else float("nan"),
        mean_squared_error=mean["error"],
        cosine_similarity=mean["cosine"],
        norm_in=mean["norm_in"],
        norm_out=mean["norm_out"],
        norm_ratio=mean["ratio"],
        relative_reconstruction_bias=_ratio(mean["square_out"], mean["dot"]),
        l0=mean["l0"],
        l1=mean["l1"],
        over_1_percent=float((density > 0.01).mean()),
        over_10_percent=float((density > 0.1).mean()),
        alive_share=float((counts > 0).mean()),
        density=density,
        encoder_norm=np.linalg.norm(encoder, axis=1),
        encoder_bias=np.asarray(model.weights.encoder_bias),
        encoder_decoder_cosine=_cosines(encoder, decoder),
        max_encoder_cosine=_largest_cosines(encoder),
        max_decoder_cosine=_largest_cosines(decoder),
    )


def dead_features(model: Autoencoder, x: Any, *, rows: int | None = None) -> Dead:
    """The features that are open in none of the rows, looking at as many as it takes.

    Args:
      model: an `Autoencoder`.
      x: (n, d), or the path of a `.npy` file of such a matrix; read in blocks.
      rows: how many rows to look at, at most; None: all, until every feature was open once.

    Returns:
      `Dead`: the features and the number of rows.

    Raises:
      ValueError: x is no matrix of the model's columns, or rows that were read are not finite.
    """
    silent = np.ones(model.features, bool)
    looked = 0
    for _, block in model._blocks(x):
        block = block if rows is None else block[: rows - looked]
        if not len(block) or not silent.any():
            break
        silent &= ~np.asarray(_opened(model, block))
        looked += len(block)
    return Dead(np.flatnonzero(silent).astype(np.int32), looked)


class _Measured(NamedTuple):
    """What is measured of each row, (n,)."""

    of_row: tuple[Array, Array]
    """Norm and unit of the row itself: what it was divided by, a power of two."""
    of_output: tuple[Array, Array]
    """The same of the reconstruction."""
    of_error: tuple[Array, Array]
    """The same of their difference."""
    dot: Array
    """Of row and reconstruction, each in its own unit."""
    l0: Array
    l1: Array


def _in_units(measured: _Measured) -> dict[str, np.ndarray]:
    """The quantities of `Evaluation` of each row, in the units of the data: float64, (n,)."""
    exact: Any = jax.tree.map(lambda v: np.asarray(v, np.float64), measured)
    (norm_in, unit_in), (norm_out, unit_out), (norm, unit) = exact[:3]
    product = norm_in * norm_out
    cosine = np.divide(exact.dot, product, out=np.zeros_like(product), where=product > 0)
    norm_in, norm_out, norm = norm_in * unit_in, norm_out * unit_out, norm * unit
    return {
        "error": norm**2,
        "norm_in": norm_in,
        "norm_out": norm_out,
        "square_out": norm_out**2,
        "ratio": np.divide(norm_out, norm_in, out=norm_out.copy(), where=norm_in > 0),
        "dot": exact.dot * unit_in * unit_out,
        "cosine": cosine,
        "l0": exact.l0,
        "l1": exact.l1,
    }


def _measure(model: Autoencoder, x: np.ndarray, y: np.ndarray) -> tuple[_Measured, Array]:
    # Without what a compiled program does not depend on: else each model would be compiled for.
    bare = dataclasses.replace(model, recipe=None, about={}, training=None)
    return _measured(bare, jnp.asarray(x), jnp.asarray(y))


def _opened(model: Autoencoder, x: np.ndarray) -> Array:
    return jnp.any(model.encode(x) > 0, axis=0)


@jax.jit
def _measured(model: Autoencoder, x: Array, y: Array) -> tuple[_Measured, Array]:
    features = model.encode(x)
    out = model.decode(features, x)
    is_open = features > 0
    (y_, unit_in), (out_, unit_out), (error, unit) = map(_in_own_unit, (y, out, y - out))
    norm_in, norm_out, norm = (jnp.linalg.norm(v, axis=1) for v in (y_, out_, error))
    measured = _Measured(
        (norm_in, unit_in),
        (norm_out, unit_out),
        (norm, unit),
        jnp.sum(y_ * out_, axis=1),
        jnp.sum(is_open, axis=1, dtype=jnp.int32),
        jnp.sum(features, axis=1),
    )
    return measured, jnp.sum(is_open, axis=0, dtype=jnp.int32)


def _in_own_unit(rows: Array) -> tuple[Array, Array]:
    """Rows divided by a power of two each, so that their largest entry is about 1; and that."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(rows), axis=1))
    # Of the smallest numbers the reciprocal would overflow; they are as good as 0 in float32.
    exponent = jnp.clip(exponent, -125, 127)
    one = jnp.ones((), rows.dtype)
    return rows * jnp.ldexp(one, -exponent)[:, None], jnp.ldexp(one, exponent)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape != b.shape:
        return np.full(len(a), np.nan)
    return np.sum(_unit(a) * _unit(b), axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)


def _largest_cosines(rows: np.ndarray) -> np.ndarray:
    """(m,): of each row, the largest cosine to another one; NaN where there is no other."""
    unit = jnp.asarray(_unit(rows))
    if len(unit) == 1:
        return np.full(1, np.nan)
    starts = range(0, len(unit), _COSINE_ROWS)
    return np.concatenate([np.asarray(_largest(unit, s, _COSINE_ROWS)) for s in starts])[
        : len(unit)
    ]


@partial(jax.jit, static_argnums=2)
def _largest(unit: Array, start: Any, size: int) -> Array:
    # Past the end the rows of the last whole block come again; the caller cuts them off.
    numbers = start + jnp.arange(size)
    cosines = unit[jnp.minimum(numbers, len(unit) - 1)] @ unit.T
    itself = numbers[:, None] == jnp.arange(len(unit))
    return jnp.max(jnp.where(itself, -jnp.inf, cosines), axis=1)


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


def _number(value: Any) -> float:
    """The value; -1 for NaN, which JSON does not have."""
    return float(value) if np.isfinite(value) else _NOT_MEASURED


def _mean(values: np.ndarray) -> float:
    return _number(values.mean())


def _unmeasured(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, _NOT_MEASURED)
