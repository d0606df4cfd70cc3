"""Exchanges the activations of a trained model for thresholded ones, calibrated layer by layer.

Layer by layer in one forward pass: where an activation is applied, its threshold is set from what
arrives there, which has already gone through the thresholds of the layers in front.
"""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxtrelu._primitive.spec import VariantName, checked_spec
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.nnx._swap_error import calibrated_to_error
from jaxtrelu.nnx._swap_layers import (
    Forward,
    SwappedLayer,
    Which,
    calibrated,
    is_activation,
    is_own,
    keep_layer,
    zero_counts,
)
from jaxtrelu.nnx._thresholded_relu import ThresholdedReLU

Score = Callable[[Any], float]
FineTune = Callable[[Any, float], None]

# After these halvings of (0, 1) the share of zeros is known to 1/256.
_HALVINGS = 8


class Swapped(NamedTuple):
    """A model with its activations exchanged, and what it cost and gave.

    ``print(found.summary())`` shows it as a table.
    """

    model: Any
    """The new model; the one that was given is as it was."""
    layers: tuple[SwappedLayer, ...]
    """In the order in which they are applied, as they were last calibrated."""
    sparsity: float | None
    """The share of zeros that each layer was calibrated to; None with ``error=``."""
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
        heading = "" if self.sparsity is not None else "  error of the next"
        lines = [f"{'layer':<{width}}  {'was':<12}  {'threshold':>18}  {'zeros':>6}{heading}"]
        for layer in self.layers:
            values = np.asarray(layer.threshold)
            text = f"{values.min():.4g}"
            if values.ndim:
                text += f" to {values.max():.4g}"
            error = "" if layer.error is None else f"  {layer.error:.2%}"
            lines.append(
                f"{layer.path:<{width}}  {layer.was:<12}  {text:>18}  {layer.zeros:>6.1%}{error}"
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
    sparsity: float | Sequence[float] | None = None,
    max_loss: float | None = None,
    error: float | None = None,
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
      model: a trained NNX module, which is not changed. Call its ``eval()`` if it has dropout.
      sample: a batch for `forward`, from the training data: a few hundred rows and more. Without
        `forward` a list of arrays is a list of batches, whose rows are put together.
      sparsity: the share of zeros, between 0 and 1; or several that do not fall, such as
        ``(0.8, 0.8)``, each followed by fine-tuning. None: 0.8, unless `max_loss` or `error`
        decide.
      max_loss: instead of `sparsity` decides the score: the largest share of zeros, to 1/256, at
        which the score falls by at most this. Found before any fine-tuning.
      error: instead of `sparsity`, what the next layer bears: each threshold is the largest, to
        1/16,384 of the largest pre-activation, at which the output of the next `nnx.Linear`,
        `LinearGeneral`, `Einsum` or `Conv` that depends on the activation is off by at most this
        share of its norm, ``‖y_θ − y‖ / ‖y‖``, where y comes from the activation that was there.
        Layer by layer, each behind those that are set; without `max_loss`, `fine_tune`,
        `per_channel`. Some 16 forward passes a layer.
      score: ``model -> number``, larger is better, on held-out data: accuracy, or minus a loss.
      fine_tune: ``(model, sparsity) -> None``, which trains the model in place after each
        calibration. Weights then open what was closed: so thresholds, unless `learned`, are
        calibrated once more at the end.
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
      TypeError: `score` or `fine_tune` cannot be called; `score` returns no number; `sample` is no
        array, or a list of something else; `which` chooses what cannot be called.
      ValueError: no activation found, or one that is applied twice in a call or inside of a
        transformation; `max_loss` beside `sparsity`; a share or an error outside of (0, 1);
        pre-activations with NaN, or all equal; a variant without zeros; a score of NaN;
        ``max_loss`` without `score`, or below 0;
        an `error` that the exchange itself exceeds, or with no layer behind an activation.

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
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` should be a flax.nnx.Module, but is {type(model).__name__}.")
    shares = _shares(0.8 if sparsity is None else sparsity)
    spec = checked_spec(variant)
    if not spec.traits.has_zeros:
        raise ValueError(f"variant={variant!r} has no zeros: it is {spec.traits.formula}.")
    is_loss = isinstance(max_loss, numbers.Real) and max_loss >= 0
    if max_loss is not None and (score is None or not is_loss):
        raise ValueError(
            f"`max_loss` should be at least 0, and needs `score`, but is {max_loss!r} with "
            f"score={score!r}."
        )
    if max_loss is not None and sparsity is not None:
        raise ValueError(
            "`max_loss` finds the share of zeros, and does not go with `sparsity`. Leave one out."
        )
    if error is not None:
        others = {"sparsity": sparsity, "max_loss": max_loss, "fine_tune": fine_tune}
        _check_error(error, **others, per_channel=per_channel)
    functions = {"score": score, "fine_tune": fine_tune, "which": which, "forward": forward}
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"`{name}` should be a function, but is {function!r}.")
    sample, run = _batch(sample, forward), forward or _call

    def make(value: Any, channels: int) -> ThresholdedReLU:
        del value
        return ThresholdedReLU(
            jnp.ones(channels if per_channel else ()),  # calibrated before it is used
            features=channels if per_channel else None,
            variant=variant,
            learned=learned,
            surrogate=surrogate,
        )

    new = nnx.clone(model)
    chosen = which or is_activation
    before = None if score is None else _scored(score, model)
    if max_loss is not None and before is not None and math.isinf(before):
        raise ValueError(
            f"`score` returned {before} for the model as it is, and nothing is less by `max_loss`."
        )
    if error is not None:
        layers = calibrated_to_error(new, sample, error, run, chosen, make)
        return _report(model, new, sample, run, layers, None, before, score)
    layers = calibrated(new, sample, shares[0], run, chosen, make)
    names = {layer.path: layer.was for layer in layers}
    if max_loss is not None and score is not None and before is not None:
        shares = (_largest_share(new, sample, before - max_loss, score, run),)
    for share in shares:
        layers = calibrated(new, sample, share, run, is_own, keep_layer)
        if fine_tune is not None:
            fine_tune(new, share)
    if fine_tune is not None and not learned:
        layers = calibrated(new, sample, shares[-1], run, is_own, keep_layer)
    layers = tuple(layer._replace(was=names[layer.path]) for layer in layers)
    return _report(model, new, sample, run, layers, shares[-1], before, score)


def zeros_by_layer(
    model: nnx.Module, sample: Any, *, forward: Forward | None = None
) -> dict[str, float]:
    """The share of zeros that each thresholded activation of a model gives, as it stands.

    Of rows that were held out of a calibration it says how far the share that was asked for holds.

    Args:
      model: an NNX module with `ThresholdedReLU` layers, which is not changed.
      sample: a batch for `forward`, as in `swap_activations`.
      forward: as in `swap_activations`.

    Returns:
      From a layer's path, such as ``layers.1``, to its share of zeros, in the order of the calls.

    Raises:
      TypeError: `sample` is no array.
      ValueError: no such layer that the model applies, or one inside of a transformation; NaN that
        arrives there, or nothing at all.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxtrelu.nnx import swap_activations, zeros_by_layer
      >>> model = nnx.Sequential(
      ...     nnx.Linear(4, 64, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(64, 2, rngs=nnx.Rngs(1)))
      >>> x, held_out = jax.random.normal(jax.random.key(0), (2, 500, 4))
      >>> zeros = zeros_by_layer(swap_activations(model, x, sparsity=0.9).model, held_out)
      >>> list(zeros), abs(zeros["layers.1"] - 0.9) < 0.02
      (['layers.1'], True)

    Source: the definition.
    """
    counts = zero_counts(nnx.clone(model), _batch(sample, forward), forward or _call)
    if not counts:
        raise ValueError(
            "`model` applies no ThresholdedReLU to the sample: pass what swap_activations returned "
            "as its model."
        )
    return {path: zeros / entries for path, (zeros, entries) in counts.items()}


def sparsity_curve(
    model: nnx.Module,
    sample: Any,
    sparsities: Sequence[float],
    score: Score,
    *,
    variant: VariantName = "hard",
    per_channel: bool = False,
    which: Which | None = None,
    forward: Forward | None = None,
) -> SparsityCurve:
    """What a trained model is worth at each share of zeros, without any fine-tuning.

    As `swap_activations`, calibrated layer by layer to one share after the other.

    Args:
      model: a trained NNX module, which is not changed.
      sample: a batch for `forward`, from the training data, as in `swap_activations`.
      sparsities: the shares of zeros, each between 0 and 1.
      score: ``model -> number``, on held-out data.
      variant: ``"hard"`` or ``"shift"``.
      per_channel: a threshold for each channel of the last axis.
      which: as in `swap_activations`.
      forward: as in `swap_activations`.

    Returns:
      `SparsityCurve`, in the order of `sparsities`.

    Raises:
      TypeError, ValueError: as `swap_activations`.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxtrelu.nnx import sparsity_curve
      >>> model = nnx.Sequential(
      ...     nnx.Linear(4, 64, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(64, 2, rngs=nnx.Rngs(1)))
      >>> x = jax.random.normal(jax.random.key(0), (100, 4))
      >>> change = lambda other: -float(abs(other(x) - model(x)).mean())
      >>> curve = sparsity_curve(model, x, [0.6, 0.9], change)
      >>> bool(curve.score[1] < curve.score[0] < 0)
      True

    Source: Kurtz et al. 2020 (FATReLU).
    """
    shares = _shares(sparsities, "sparsities", rising=False)
    if not callable(score):
        raise TypeError(f"`score` should be a function of the model, but is {score!r}.")
    found = swap_activations(
        model,
        sample,
        sparsity=shares[0],
        variant=variant,
        per_channel=per_channel,
        which=which,
        forward=forward,
    ).model
    sample, run = _batch(sample, forward), forward or _call
    zeros, scores = [], []
    for share in shares:
        layers = calibrated(found, sample, share, run, is_own, keep_layer)
        zeros.append(_total(layers))
        scores.append(_scored(score, found))
    return SparsityCurve(np.array(shares), np.array(zeros), np.array(scores))


def _call(model: Any, sample: Any) -> Any:
    try:
        return model(sample)
    except (TypeError, ValueError) as error:
        # What is said here of an activation is a ValueError, and is said of arrays.
        if isinstance(error, ValueError) and not isinstance(sample, Mapping):
            raise
        kind = type(sample).__name__
        if hasattr(sample, "shape"):
            kind = f"an array of shape {sample.shape} and dtype {sample.dtype}"
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TypeError(
            f"`model` cannot be called with `sample`, {kind}: {reason}. Pass what it takes, or "
            "say by `forward` what it is called with."
        ) from error


def _batch(sample: Any, forward: Forward | None) -> Any:
    """The sample; of a list of batches, where none but the model takes it, one of all rows."""
    if forward is not None:
        return sample
    leaves = [] if isinstance(sample, Iterator) else jax.tree.leaves(sample)
    known = all(isinstance(a, numbers.Number) or hasattr(a, "shape") for a in leaves)
    # Of a tuple nobody knows whether it is several batches, or several inputs of the model.
    if not leaves or not known or isinstance(sample, tuple):
        given = type(sample).__name__
        if isinstance(sample, list):
            odd = [type(a).__name__ for a in leaves if not hasattr(a, "shape")]
            given = f"a list with a {odd[0]} in it" if odd else "an empty list"
        raise TypeError(
            "`sample` should be a batch of rows, or a list of such arrays, but is "
            f"{given}: pass arrays, or say by `forward` what the model is called "
            "with."
        )
    if odd := [a.dtype for a in leaves if getattr(getattr(a, "dtype", None), "kind", "f") in "OSU"]:
        raise TypeError(f"`sample` should be a batch of numbers, but holds {odd[0]}.")
    if not isinstance(sample, list):
        return sample
    others = [type(part).__name__ for part in sample if not getattr(part, "shape", ())]
    if others:
        raise TypeError(
            "`sample` should be a batch of rows, or a list of such arrays, but is a list with a "
            f"{others[0]} in it: pass arrays, or say by `forward` what the model is called with."
        )
    if all(part.ndim == 1 and jnp.issubdtype(part.dtype, jnp.floating) for part in sample):
        raise ValueError(
            "`sample` is a list of vectors, and a list is one of batches: if these are rows, pass "
            "np.stack(sample)."
        )
    if len(shapes := dict.fromkeys(part.shape[1:] for part in sample)) > 1:
        raise ValueError(
            "`sample` is a list of batches, whose rows should have one shape, but have "
            f"{' and '.join(map(str, shapes))}."
        )
    return jnp.concatenate(sample)


def _scored(score: Score, model: nnx.Module) -> float:
    """What `score` returns for the model: a number, and no NaN."""
    value = score(model)
    shape = getattr(value, "shape", None)
    is_number = isinstance(value, numbers.Real) or shape == ()
    if not is_number or np.iscomplexobj(value):
        given = f"an array of shape {shape}" if shape else repr(value)
        raise TypeError(
            f"`score` should return a number, larger for a better model, but returned {given}."
        )
    if math.isnan(found := float(value)):
        raise ValueError(
            "`score` returned NaN, which no score can be compared with: look at what the model "
            "gives for the held-out data, and at what the score divides by."
        )
    return found


def _shares(
    given: float | Sequence[float], name: str = "sparsity", rising: bool = True
) -> tuple[float, ...]:
    """The shares as a tuple, each between 0 and 1."""
    array = np.asarray(given)
    if not array.size:
        raise ValueError(f"`{name}` should be a share of zeros, or several, but there is none.")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` should be a number, or several, but is {given!r}.")
    shares = tuple(array.astype(np.float64).reshape(-1).tolist())
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(
                f"`{name}` should be greater than 0 and less than 1, but is {share!r}."
            )
    if rising and list(shares) != sorted(shares):
        raise ValueError(f"`{name}` should not fall, but is {list(shares)}.")
    return shares


def _check_error(error: float, **others: Any) -> None:
    if not isinstance(error, numbers.Real) or not 0 < error < 1:
        raise ValueError(f"`error` should be greater than 0 and less than 1, but is {error!r}.")
    for name, value in others.items():
        if value not in (None, False):
            raise ValueError(f"`error` does not go with `{name}`: pass one of the two.")


def _report(
    model: nnx.Module,
    new: nnx.Module,
    sample: Any,
    run: Forward,
    layers: tuple[SwappedLayer, ...],
    sparsity: float | None,
    before: float | None,
    score: Score | None,
) -> Swapped:
    """What is said of both models."""
    zeros, entries = np.sum(list(zero_counts(new, sample, run).values()), axis=0)
    return Swapped(
        model=new,
        layers=layers,
        sparsity=sparsity,
        zeros=float(zeros / entries),
        kept_before=kept_bytes(model, sample, run),
        kept_after=kept_bytes(new, sample, run),
        score_before=before,
        score_after=None if score is None else _scored(score, new),
    )


def _total(layers: Sequence[SwappedLayer]) -> float:
    """Share of zeros of all layers together."""
    entries = sum(layer.entries for layer in layers)
    return sum(layer.zeros * layer.entries for layer in layers) / entries


def _largest_share(
    model: nnx.Module, sample: Any, wanted: float, score: Score, forward: Forward
) -> float:
    """The largest share of zeros at which the score is at least `wanted`, by bisection.

    A score falls nearly, but not strictly, with the share: what is returned was measured.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        calibrated(model, sample, middle, forward, is_own, keep_layer)
        low, high = (middle, high) if _scored(score, model) >= wanted else (low, middle)
    if not low:
        raise ValueError(
            f"even with 1/{2**_HALVINGS} of zeros the score is below {wanted:.6g}: the exchange "
            "itself costs more than `max_loss`. Allow more, or fine-tune at a fixed `sparsity`."
        )
    return low


def kept_bytes(model: nnx.Module, sample: Any, forward: Forward) -> int:
    """Bytes that `jax.vjp` of the jitted model keeps beside its parameters and the sample."""
    graph, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    # As it is told from what is kept: a NumPy array would come back as another one.
    sample = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, sample)

    @jax.jit
    def output(params: Any, rest: Any, sample: Any) -> Any:
        return forward(nnx.merge(graph, params, rest), sample)

    _, pull = jax.vjp(lambda params: output(params, rest, sample), params)
    present = {id(leaf) for leaf in jax.tree.leaves((params, rest, sample))}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(pull) if id(leaf) not in present}
    return sum(leaf.nbytes for leaf in kept.values() if hasattr(leaf, "nbytes"))
