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
    """In the order in which they are applied, as they were last calibrated."""
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
            lines.append(f"{layer.path:<{width}}  {layer.was:<12}  {text:>18}  {layer.zeros:>6.1%}")
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
      model: a trained NNX module, which is not changed. Call its ``eval()`` if it has dropout.
      sample: a batch for `forward`, from the training data: a few hundred rows and more.
      sparsity: the share of zeros, between 0 and 1; or several that do not fall, such as
        ``(0.8, 0.8)``, each followed by fine-tuning.
      max_loss: instead of `sparsity` decides the score: the largest share of zeros, to 1/256, at
        which the score falls by at most this. Found before any fine-tuning.
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
        return ThresholdedReLU(
            jnp.ones(channels if per_channel else ()),  # calibrated before it is used
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
    if fine_tune is not None and not learned:
        layers = _calibrated(new, sample, shares[-1], run, _is_own, _keep)
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
      sample: a batch for `forward`, from the training data.
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
    shares = _shares(sparsities, rising=False)
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
    run = forward or _call
    zeros, scores = [], []
    for share in shares:
        layers = _calibrated(found, sample, share, run, _is_own, _keep)
        zeros.append(_total(layers))
        scores.append(float(score(found)))
    return SparsityCurve(np.array(shares), np.array(zeros), np.array(scores))


def _call(model: Any, sample: Any) -> Any:
    return model(sample)


def _shares(sparsity: float | Sequence[float], rising: bool = True) -> tuple[float, ...]:
    """The shares as a tuple, each between 0 and 1."""
    shares = tuple(np.asarray(sparsity, np.float64).reshape(-1).tolist())
    if not shares:
        raise ValueError("`sparsity` should be a share of zeros, or several, but there is none.")
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(
                f"`sparsity` should be greater than 0 and less than 1, but is {share!r}."
            )
    if rising and list(shares) != sorted(shares):
        raise ValueError(f"`sparsity` should not fall, but is {list(shares)}.")
    return shares


# Which values are activations.


def _function_of(value: Any) -> Any:
    """The function itself, out of a partial."""
    return value.func if isinstance(value, functools.partial) else value


def _is_activation(path: tuple, value: Any) -> bool:
    del path
    function = _function_of(value)
    return isinstance(value, _MODULES) or any(function is known for known in _FUNCTIONS)


def _is_own(path: tuple, value: Any) -> bool:
    del path
    return isinstance(value, ThresholdedReLU)


def _keep(value: Any, channels: int) -> Any:
    del channels
    return value


def _name_of(value: Any) -> str:
    function = _function_of(value)
    name = getattr(function, "__name__", None)
    return str(name) if name else type(value).__name__


class _Place(NamedTuple):
    """Where an activation is: an attribute of a module."""

    owner: nnx.Module
    name: str
    path: str
    value: Any


def _places(model: nnx.Module, which: Which) -> list[_Place]:
    found = []
    for path, owner in nnx.iter_graph(model):
        if not isinstance(owner, nnx.Module) or isinstance(owner, _MODULES):
            continue
        for name, value in vars(owner).items():
            if not name.startswith("_pytree__") and which((*path, name), value):
                text = ".".join(str(part) for part in (*path, name))
                found.append(_Place(owner, name, text, value))
    return found


# One forward pass, in which activations are exchanged as they are reached.


class _Probe(nnx.Module):
    """Stands for an activation during one forward pass."""

    def __init__(self, reached: Callable[[Any], Any]):
        self.reached = reached

    def __call__(self, x: Any) -> Any:
        return self.reached(x)


def _calibrated(
    model: nnx.Module,
    sample: Any,
    share: float,
    forward: Forward,
    which: Which,
    make: Callable[[Any, int], ThresholdedReLU],
) -> tuple[SwappedLayer, ...]:
    """Exchanges what `which` chooses for what `make` makes of it, calibrated; in place."""
    layers: dict[str, SwappedLayer] = {}
    new: dict[str, Any] = {}

    def reached(place: _Place, x: Any) -> Any:
        _check_input(place, x, place.path in new)
        layer = make(place.value, x.shape[-1])
        layer.threshold[...] = _threshold(place, x, share, layer.threshold[...])
        y = layer(x)
        new[place.path] = layer
        layers[place.path] = SwappedLayer(
            place.path,
            _name_of(place.value),
            jnp.asarray(layer.threshold_value),
            float(jnp.mean(y == 0)),
            y.size,
        )
        return y

    _with_probes(model, _places(model, which), lambda: forward(model, sample), reached, new)
    if not layers:
        raise ValueError(
            "no activation was found that `model` applies to the sample. Keep it as an attribute, "
            "self.activation = nnx.relu, or in an nnx.Sequential, and say `which=` if it is none "
            "of those that are known."
        )
    return tuple(layers.values())


def _with_probes(
    model: nnx.Module,
    places: list[_Place],
    run: Callable[[], Any],
    reached: Callable[[_Place, Any], Any],
    new: dict[str, Any],
) -> None:
    """Runs with a probe at each place, and afterwards leaves there what is in `new`, if anything.

    After an error everything is as it was.
    """
    done = False
    for place in places:
        probe = _Probe(functools.partial(reached, place))
        setattr(place.owner, place.name, nnx.data(probe))
    try:
        run()
        done = True
    finally:
        for place in places:
            value = new.get(place.path, place.value) if done else place.value
            is_module = isinstance(value, nnx.Module)
            setattr(place.owner, place.name, nnx.data(value) if is_module else nnx.static(value))


def _check_input(place: _Place, x: Any, seen: bool) -> None:
    if isinstance(x, jax.core.Tracer):
        raise ValueError(
            f"{place.path} is inside of a transformation (jax.jit, nnx.scan, …), where its "
            "threshold cannot be set from what arrives. Pass forward= that runs step by step."
        )
    if seen:
        raise ValueError(
            f"{place.path} is applied more than once in a call, and one threshold cannot be "
            "calibrated at two places. Give each place an activation of its own."
        )
    if not jnp.ndim(x):
        raise ValueError(f"{place.path} is applied to a scalar, which has no channels.")


def _threshold(place: _Place, x: jax.Array, share: float, like: jax.Array) -> jax.Array:
    """The quantile, but not below 0, where a trained ReLU closes already."""
    axes = tuple(range(x.ndim - 1)) if like.ndim else None
    try:
        found = theory.quantile_threshold(x.astype(jnp.float32), share, axis=axes)
    except ValueError as error:
        raise ValueError(f"at {place.path}: {error}") from None
    return jnp.maximum(found, 0).astype(like.dtype)


def _zeros(model: nnx.Module, sample: Any, forward: Forward) -> float:
    """Share of zeros in all thresholded layers, with the thresholds as they are."""
    counts = []

    def reached(place: _Place, x: Any) -> Any:
        y = place.value(x)
        counts.append((int(jnp.sum(y == 0)), y.size))
        return y

    _with_probes(model, _places(model, _is_own), lambda: forward(model, sample), reached, {})
    zeros, entries = np.sum(counts, axis=0)
    return float(zeros / entries)


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
        _calibrated(model, sample, middle, forward, _is_own, _keep)
        low, high = (middle, high) if float(score(model)) >= wanted else (low, middle)
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
