"""The variables that hold thresholds, and how an optimiser tells them from weights."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import Spec, ThresholdLike


class Threshold(nnx.Param):
    """A learned threshold: the type by which a filter tells thresholds from weights.

    It is an `nnx.Param`, so gradients and optimisers see it; in a list of filters it stands before
    ``nnx.Param``, which would take it as well.

    Weight decay pulls a threshold towards 0 as it does a weight. To leave thresholds out, or to
    give them a learning rate of their own, pass Optax what `threshold_labels` returns, made once
    from the model. A *function* as ``mask=`` or as labels does not work if it looks for this type:
    `nnx.Optimizer.update` hands Optax plain arrays, so it matches nothing there, and thresholds are
    decayed, or take the weights' rate, without a word (a transformation with a state, such as Adam,
    fails over the structure of its pytree instead).

    Example:
      >>> import optax
      >>> from flax import nnx
      >>> from jaxtrelu.nnx import Threshold, ThresholdedReLU, threshold_labels
      >>> model = nnx.Sequential(
      ...     nnx.Linear(4, 8, rngs=nnx.Rngs(0)), ThresholdedReLU(0.1, features=8, learned=True))
      >>> _, thresholds, weights, rest = nnx.split(model, Threshold, nnx.Param, ...)
      >>> len(jax.tree.leaves(thresholds)), len(jax.tree.leaves(weights))
      (1, 2)

      Weights are decayed, thresholds are not:

      >>> decayed = threshold_labels(model, threshold=False, other=True)
      >>> optimizer = nnx.Optimizer(model, optax.adamw(1e-3, mask=decayed), wrt=nnx.Param)

      Thresholds learn ten times as fast, without decay:

      >>> each = {"threshold": optax.adam(1e-2), "other": optax.adamw(1e-3)}
      >>> transform = optax.multi_transform(each, threshold_labels(model))
      >>> optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
    """


class FixedThreshold(nnx.Variable):
    """A threshold that is stored and not learned: no `nnx.Param`, so optimisers do not see it.

    It is part of the layer's state, is saved with it, and may be set, as a calibration does.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxtrelu.nnx import ThresholdedReLU
      >>> layer = ThresholdedReLU([0.1, 0.2])
      >>> layer.threshold[...] = jnp.array([0.5, 1.0])
      >>> layer(jnp.array([2.0, 2.0])).tolist()
      [1.5, 1.0]
    """


class ThresholdScale(nnx.Variable):
    """The s of a JumpReLU's θ = s softplus(ρ / s): stored beside ρ, and not learned.

    So a state gives the same thresholds in a layer that was constructed with others. It takes both,
    though: parameters alone are ρ without its s, and a layer that starts elsewhere reads other
    thresholds from them, without a word, since an optimiser's update looks just the same. Save
    ``nnx.state(model)``, or ``nnx.state(model, nnx.Any(nnx.Param, ThresholdScale))``; for the same
    reason the state of a layer with ``parametrisation="raw"`` is not one of ``"softplus"``.

    Example:
      >>> from flax import nnx
      >>> from jaxtrelu import Rectangle
      >>> from jaxtrelu.nnx import JumpReLU
      >>> make = lambda start: JumpReLU(
      ...     2, surrogate=Rectangle(0.1), threshold=start, parametrisation="softplus")
      >>> trained, other = make(0.5), make(0.1)
      >>> nnx.update(other, nnx.state(trained))
      >>> other.threshold_value.round(3).tolist()
      [0.5, 0.5]
    """


def threshold_labels(
    model: Any, *, threshold: Any = "threshold", other: Any = "other", wrt: Any = nnx.Param
) -> nnx.State:
    """A label for every parameter of a model: whether it is a learned threshold.

    A pytree of the structure that Optax sees in `nnx.Optimizer`, for ``optax.multi_transform`` and
    for any ``mask=``. It depends on the model's structure only: make it once.

    Args:
      model: an NNX module, or the state of one.
      threshold: the label of every `Threshold`: a string, or a bool for a mask.
      other: the label of all other parameters.
      wrt: the filter that the optimiser is made with.

    Returns:
      An `nnx.State` with a label in place of each variable.

    Raises:
      TypeError: the model is no NNX module and no state.
      ValueError: as `nnx.state`.

    Example:
      >>> from flax import nnx
      >>> from jaxtrelu.nnx import ThresholdedReLU, threshold_labels
      >>> model = nnx.Sequential(
      ...     nnx.Linear(4, 8, rngs=nnx.Rngs(0)), ThresholdedReLU(0.1, features=8, learned=True))
      >>> labels = threshold_labels(model)
      >>> labels["layers"][0]["kernel"], labels["layers"][1]["threshold"]
      ('other', 'threshold')
    """
    try:
        state = nnx.state(model, wrt)
    except IndexError:  # what Flax has for one leaf
        raise TypeError(
            f"`model` should be an NNX module, or the state of one, but is {model!r}."
        ) from None
    return jax.tree.map(
        lambda variable: threshold if isinstance(variable, Threshold) else other,
        state,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


def held(
    threshold: ThresholdLike,
    shape: tuple,
    *,
    learned: bool,
    spec: Spec,
    dtype: DTypeLike,
    metadata: Mapping[str, Any],
    rngs: nnx.Rngs | None,
) -> Any:
    """What a layer keeps as its attribute `threshold`: a variable, or a plain number."""
    if rngs is not None:
        check_rngs(rngs)
    number = core.static_number(threshold)
    if number is not None and not shape and not learned:
        if metadata:
            raise ValueError(
                "`threshold_metadata` has no variable to go to: the threshold is one fixed number, "
                "and nothing is stored. Drop it, or pass learned=True or `features`."
            )
        return number
    key = None
    if callable(threshold):
        if rngs is None:
            raise ValueError(
                "`threshold` is an initialiser, which needs a random key. Pass rngs=nnx.Rngs(0)."
            )
        key = rngs.params()
    value = core.initialise(threshold, key, shape, dtype=dtype, learned=learned, spec=spec)
    return (Threshold if learned else FixedThreshold)(value, **metadata)


def check_rngs(rngs: Any) -> None:
    """Refuses what gives no keys, such as a seed."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"`rngs` should be random keys such as nnx.Rngs(0), but is {rngs!r}.")


def value_of(threshold: Any) -> Any:
    """The number or array that a layer's attribute `threshold` stands for."""
    return threshold[...] if isinstance(threshold, nnx.Variable) else threshold
