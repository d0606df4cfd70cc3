"""Exchanges the activations of a trained model for thresholded ones, calibrated layer by layer.

Layer by layer in one forward pass: where an activation is applied, its threshold is set from what
arrives there, which has already gone through the thresholds of the layers in front.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxtrelu import theory
from jaxtrelu._activation import shifted_relu, thresholded_relu
from jaxtrelu._primitive.spec import VariantName, checked_spec
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.nnx._jump_relu import JumpReLU
from jaxtrelu.nnx._thresholded_relu import ThresholdedReLU

Which = Callable[[tuple, Any], bool]
Forward = Callable[[Any, Any], Any]
Score = Callable[[Any], float]
FineTune = Callable[[Any, float], None]

_FUNCTIONS = (
    jax.nn.relu,
    jax.nn.gelu,
    jax.nn.silu,
    jax.nn.leaky_relu,
    jax.nn.elu,
    jax.nn.celu,
    jax.nn.mish,
    thresholded_relu,
    shifted_relu,
)
_MODULES = (nnx.PReLU, ThresholdedReLU, JumpReLU)
# After these halvings of (0, 1) the share of zeros is known to 1/256.
_HALVINGS = 8


class SwappedLayer(NamedTuple):
    """An activation that was exchanged or calibrated."""

    path: str
    """Where in the model, such as ``layers.1``."""
    was: str
    """What it was."""
    threshold: jax.Array
    """θ, one number or one per channel, in the units of the pre-activations."""
    zeros: float
    """Share of zeros on the sample, with the thresholds in front of it in place."""
    entries: int
    """How many values went through it."""


class Swapped(NamedTuple):
    """A model with its activations exchanged, and what it cost and gave.

    ``print(found.summary())`` shows it as a table.
    """

    model: Any
    """The new model; the one that was given is as it was."""
    layers: tuple[SwappedLayer, ...]
    """In the order in which they are applied; as calibrated, before the last fine-tuning."""
    sparsity: float
    """The share of zeros that each layer was calibrated to."""
    zeros: float
    """Share of zeros in all of these layers on the sample, in the model as it is returned."""
    kept_before: int
    """Bytes that `jax.vjp` of the jitted old model keeps for its backward pass on the sample."""
    kept_after: int
    """The same for the new one."""
    score_before: float | None
    """What `score` gave for the old model; None without one."""
    score_after: float | None
    """What it gave for the new one."""

    def summary(self) -> str:
        """A table of the layers, and the totals below it, as text."""
        width = max(len("layer"), *(len(layer.path) for layer in self.layers))
        lines = [f"{'layer':<{width}}  {'was':<12}  {'threshold':>18}  {'zeros':>6}"]
        for layer in self.layers:
            values = np.asarray(layer.threshold)
            text = f"{values.min():.4g}"
            if values.ndim:
                text += f" to {values.max():.4g}"
            lines.append(
                f"{layer.path:<{width}}  {layer.was:<12}  {text:>18}  {layer.zeros:>6.1%}"
            )
        saved = self.kept_after / self.kept_before
        lines.append(f"zeros: {self.zeros:.1%}")
        lines.append(
            f"kept for the backward pass: {self.kept_before / 1e6:.3g} MB before, "
            f"{self.kept_after / 1e6:.3g} MB after ({saved:.0%})"
        )
        if self.score_before is not None:
            lines.append(f"score: {self.score_before:.4g} before, {self.score_after:.4g} after")
        return "\n".join(lines)


class SparsityCurve(NamedTuple):
    """A score at each share of zeros; as `jaxtrelu.plot.accuracy` takes it."""

    sparsity: Float[np.ndarray, " n"]
    """The shares asked for."""
    zeros: Float[np.ndarray, " n"]
    """The shares reached on the sample."""
    score: Float[np.ndarray, " n"]
    """The score at each."""


def swap_activations(
    model: nnx.Module,
    sample: Any,
    *,
    sparsity: float | Sequence[float] = 0.8,
    max_loss: float | None = None,
    score: Score | None = None,
    fine_tune: FineTune | None = None,
    variant: VariantName = "hard",
    per_channel: bool = False,
    learned: bool = False,
    surrogate: Surrogate | None = None,
    which: Which | None = None,
    forward: Forward | None = None,
) -> Swapped:
    """A copy of a trained model whose activations are thresholded ReLUs with a share of zeros.

    Found are `jax.nn` functions (relu, gelu, silu, leaky_relu, elu, celu, mish) and modules
    (`nnx.PReLU`, this library's) that are attributes of a module or entries of an `nnx.List` or
    `nnx.Sequential`; a function that is called by name inside ``__call__`` cannot be seen. Each is
    replaced by a `ThresholdedReLU`, and its threshold set to the quantile of what arrives there, 0
    at least: with ``hard`` what stays open is left as it is (FATReLU).

    Args:
      model: a trained NNX module, which is not changed. Call its ``eval()`` first if it has dropout.
      sample: a batch for `forward`, from the training data: a few hundred rows and more.
      sparsity: the share of zeros, between 0 and 1; or several in rising order, each followed by
        fine-tuning.
      max_loss: instead of `sparsity` decides the score: the largest share of zeros, to 1/256, at
        which the score falls by at most this. Found before any fine-tuning.
      score: ``model -> number``, larger is better, on held-out data: accuracy, or minus a loss.
      fine_tune: ``(model, sparsity) -> None``, which trains the model in place after each
        calibration; thresholds stay as they are unless `learned`.
      variant: ``"hard"`` or ``"shift"``.
      per_channel: a threshold for each channel of the last axis, instead of one for the layer.
      learned: whether thresholds are parameters, for `fine_tune`.
      surrogate: what gives a learned threshold of ``hard`` its gradient.
      which: ``(path, value) -> bool`` chooses what is exchanged, among all attributes; by default
        those named above. `path` is a tuple of names and numbers.
      forward: ``(model, sample) -> output``; by default ``model(sample)``. It runs step by step:
        without `jax.jit` or `nnx.scan` around an activation.

    Returns:
      `Swapped`: the new model, and the report.

    Raises:
      TypeError: `score` or `fine_tune` cannot be called.
      ValueError: no activation found, or one that is applied twice in a call or inside of a
        transformation; a share outside of (0, 1); pre-activations with NaN, or all equal; a variant
        without zeros; ``max_loss`` without `score`, or below 0.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxtrelu.nnx import swap_activations
      >>> model = nnx.Sequential(
      ...     nnx.Linear(4, 64, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(64, 2, rngs=nnx.Rngs(1)))
      >>> found = swap_activations(model, jax.random.normal(jax.random.key(0), (100, 4)))
      >>> round(found.zeros, 2), found.layers[0].was, found.kept_after < found.kept_before
      (0.8, 'relu', True)

    Source: Kurtz et al. 2020 (FATReLU); Mirzadeh et al. 2023, arXiv 2310.04564, for the exchange.
    """
    shares = _shares(sparsity)
    spec = checked_spec(variant)
    if not spec.traits.has_zeros:
        raise ValueError(f"variant={variant!r} has no zeros: it is {spec.traits.formula}.")
    if max_loss is not None and (score is None or not max_loss >= 0):
        raise ValueError(
            f"`max_loss` should be at least 0, and needs `score`, but is {max_loss!r} with "
            f"score={score!r}."
        )
    for name, function in (("score", score), ("fine_tune", fine_tune)):
        if function is not None and not callable(function):
            raise TypeError(f"`{name}` should be a function of the model, but is {function!r}.")
    run = forward or _call

    def make(value: Any, channels: int) -> ThresholdedReLU:
        del value
        start = jnp.zeros(channels if per_channel else ())
        return ThresholdedReLU(
            start,
            features=channels if per_channel else None,
            variant=variant,
            learned=learned,
            surrogate=surrogate,
        )

    new = nnx.clone(model)
    layers = _calibrated(new, sample, shares[0], run, which or _is_activation, make)
    names = {layer.path: layer.was for layer in layers}
    before = None if score is None else float(score(model))
    if max_loss is not None and score is not None and before is not None:
        shares = (_largest_share(new, sample, before - max_loss, score, run),)
    for share in shares:
        layers = _calibrated(new, sample, share, run, _is_own, _keep)
        if fine_tune is not None:
            fine_tune(new, share)
    measured = _zeros(new, sample, run)
    return Swapped(
        model=new,
        layers=tuple(layer._replace(was=names[layer.path]) for layer in layers),
        sparsity=shares[-1],
        zeros=measured,
        kept_before=kept_bytes(model, sample, run),
        kept_after=kept_bytes(new, sample, run),
        score_before=before,
        score_after=None if score is None else float(score(new)),
    )
