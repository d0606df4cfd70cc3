"""The losses of the published recipes, as plain functions of weights and a batch.

    loss = mean over the batch of ‖x − x̂‖² + λ · penalty + λ_P · Σ max(θ − π, 0) ‖d‖

with pre-activations π = x @ encoderᵀ + b, features f = JumpReLU(π, θ) and x̂ = f @ decoder + c; for
a transcoder ‖y − ŷ‖² with its target y and ŷ = f @ decoder + c, plus x @ skip if it has a skip
connection. The
penalty is a value that is returned; nothing is kept in global state. The step of the L0 penalty is
applied to π and not to f: at an entry just below its threshold f is 0, far from θ, and half of the
threshold's gradient would be lost (dictionary_learning#55); the √λ law of the documentation of
`l0_penalty` then comes out as √(λ/2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxtrelu._activation import jump_relu, mean_open, step
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sae._recipes import Recipe
from jaxtrelu.sae._weights import Weights
from jaxtrelu.sparse import sparse_mlp
from jaxtrelu.sparse._screen import Precision


class Terms(NamedTuple):
    """What a loss is made of: float32 scalars, means over the batch; and what was open."""

    reconstruction: Array
    """‖x − x̂‖²; ‖y − ŷ‖² where there are targets."""
    penalty: Array
    """The sparsity penalty, before λ multiplies it."""
    pre_activation: Array
    """Σ max(θ − π, 0) ‖d‖, before its coefficient multiplies it; 0 where the recipe has none."""
    l0: Array
    """Number of open features."""
    opened: Array
    """(m,), bool: which features are open in one of the examples at least."""


def pre_activations(weights: Weights, x: Float[Array, "*batch d"]) -> Float[Array, "*batch m"]:
    """The pre-activations, π = x @ encoderᵀ + encoder_bias.

    Args:
      weights: the parameters.
      x: scaled inputs, (..., d), in any floating dtype.

    Returns:
      π, (..., m), in x's dtype.
    """
    encoder = weights.encoder.astype(x.dtype)
    return x @ encoder.T + weights.encoder_bias.astype(x.dtype)


def reconstruct(
    weights: Weights, features: Float[Array, "*batch m"]
) -> Float[Array, "*batch d_out"]:
    """The reconstruction, x̂ = features @ decoder + decoder_bias.

    Args:
      weights: the parameters.
      features: f, (..., m), after JumpReLU.

    Returns:
      x̂, (..., d_out), in the units of the scaled inputs (for a transcoder: of the scaled targets)
      and the dtype of `features`.
    """
    dtype = features.dtype
    return features @ weights.decoder.astype(dtype) + weights.decoder_bias.astype(dtype)


def l0_penalty(
    pre_activations: Float[Array, "*batch m"],
    threshold: Float[Array, "..."],
    surrogate: Surrogate,
) -> Float[Array, ""]:
    """Mean over the batch of Σ H(π − θ), with the surrogate's gradient: the L0 penalty.

    On an orthonormal dictionary with the loss ‖x − f‖² + λ‖f‖₀ the expected gradient is
    dL/dθ = (θ² − λ) p(θ), so the learned threshold comes to √λ whatever the data.

    Args:
      pre_activations: π, (..., m).
      threshold: (m,) or what broadcasts against π.
      surrogate: the surrogate whose density stands for the step's impulse.

    Returns:
      A float32 scalar. Summed in float32 whatever the dtype of π.

    >>> from jaxtrelu import Rectangle
    >>> pi = jnp.array([[0.4, 0.52, 0.48, 1.0]])
    >>> theta = jnp.full(4, 0.5, jnp.float32)
    >>> l0_penalty(pi, theta, Rectangle(0.1)).item()
    2.0
    >>> jax.grad(l0_penalty, 1)(pi, theta, Rectangle(0.1)).tolist()
    [0.0, -10.0, -10.0, 0.0]

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435.
    """
    return mean_open(step(pre_activations, threshold, surrogate=surrogate))


def tanh_penalty(
    features: Float[Array, "*batch m"], decoder: Float[Array, "m d"], scale: float = 4.0
) -> Float[Array, ""]:
    """Mean over the batch of Σ tanh(scale · |f| ‖d‖).

    Args:
      features: f, (..., m), after JumpReLU: the gradient reaches thresholds through it.
      decoder: (m, d), whose rows' norms are ‖d‖.
      scale: c; the penalty of a feature is near 1 from f ‖d‖ = 1/c on.

    Returns:
      A float32 scalar.

    Source: Anthropic's January 2025 circuits update.
    """
    norms = jnp.linalg.norm(decoder, axis=-1)
    size = jnp.abs(features).astype(jnp.float32) * norms
    return jnp.mean(jnp.sum(jnp.tanh(scale * size), axis=-1))


def pre_activation_penalty(
    pre_activations: Float[Array, "*batch m"],
    threshold: Float[Array, " m"],
    decoder: Float[Array, "m d"],
) -> Float[Array, ""]:
    """Mean over the batch of Σ max(θ − π, 0) ‖d‖, which pulls closed features towards opening.

    Args:
      pre_activations: π, (..., m).
      threshold: θ, (m,).
      decoder: (m, d), whose rows' norms are ‖d‖.

    Returns:
      A float32 scalar.

    Source: Anthropic's January 2025 circuits update.
    """
    norms = jnp.linalg.norm(decoder, axis=-1)
    short = jnp.maximum(threshold - pre_activations.astype(jnp.float32), 0)
    return jnp.mean(jnp.sum(short * norms, axis=-1))


def loss(
    weights: Weights,
    x: Float[Array, "batch d"],
    coefficient: Float[Array, ""] | float,
    recipe: Recipe,
    *,
    targets: Float[Array, "batch d_out"] | None = None,
    skip: Float[Array, "d d_out"] | None = None,
    target_l0: Float[Array, ""] | float | None = None,
    sparse: bool = False,
    screen: Precision | bool | None = None,
    capacity: int | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """The training loss of `recipe`.

    Args:
      weights: the parameters.
      x: scaled inputs, (batch, d), in any floating dtype; thresholds stay float32 beside it.
      coefficient: λ.
      recipe: which penalties, and which surrogate.
      targets: y, (batch, d_out), scaled, what a transcoder should make of x; None: x.
      skip: (d, d_out), a transcoder's skip connection, which adds x @ skip to ŷ; None: none.
      target_l0: what the penalty "quadratic_l0" has its minimum at; others do not need it.
      sparse: whether to visit open entries only, through `jaxtrelu.sparse_mlp`: the same loss and
        gradients, to rounding. Only for recipes of `visits_entries_only`.
      screen: as in `jaxtrelu.sparse_mlp`, where open entries are visited only.
      capacity: as in `jaxtrelu.sparse_mlp`.

    Returns:
      The loss, a float32 scalar to be differentiated with respect to `weights` and `skip`, and its
      `Terms`.

    Raises:
      ValueError: the recipe needs a target, and there is none; a `screen` without `sparse`.
    """
    if recipe.penalty == "quadratic_l0" and target_l0 is None:
        raise ValueError(
            f"the penalty of the recipe {recipe.name!r} is about a target: pass a `target_l0`."
        )
    if screen and not sparse:
        raise ValueError("a `screen` is for sparse=True. Leave it out.")
    if sparse:
        passed = _sparse_pass(weights, x, recipe, screen, capacity)
    else:
        passed = _dense_pass(weights, x, recipe)
    wanted = x if targets is None else targets
    out = passed.reconstruction
    if skip is not None:
        out = out + x @ skip.astype(x.dtype)
    residual = (wanted - out).astype(jnp.float32)
    reconstruction = jnp.mean(jnp.sum(residual * residual, axis=-1))
    penalty = passed.tanh if recipe.penalty == "tanh" else passed.l0
    if target_l0 is not None and recipe.penalty == "quadratic_l0":
        penalty = (passed.l0 / target_l0 - 1) ** 2
    total = reconstruction + coefficient * penalty
    total += recipe.pre_activation_penalty * passed.pull
    terms = Terms(reconstruction, penalty, passed.pull, passed.l0, passed.opened)
    return total, jax.tree.map(jax.lax.stop_gradient, terms)


def visits_entries_only(recipe: Recipe) -> bool:
    """Whether a recipe's loss can be had without a dense latent.

    Not with a penalty on the closed features' pre-activations, nor (here) with the tanh penalty,
    nor with a surrogate that reaches every entry.
    """
    bounded = recipe.surrogate.half_width is not None
    return bounded and recipe.penalty != "tanh" and not recipe.pre_activation_penalty


class _Pass(NamedTuple):
    """What the forward pass hands to the loss."""

    reconstruction: Array
    l0: Array
    tanh: Array
    pull: Array
    opened: Array


def _dense_pass(weights: Weights, x: Array, recipe: Recipe) -> _Pass:
    pi = pre_activations(weights, x)
    features = jump_relu(pi, weights.threshold, surrogate=recipe.surrogate)
    tanh = pull = jnp.zeros((), jnp.float32)
    if recipe.penalty == "tanh":
        tanh = tanh_penalty(features, weights.decoder, recipe.tanh_scale)
    if recipe.pre_activation_penalty:
        pull = pre_activation_penalty(pi, weights.threshold, weights.decoder)
    return _Pass(
        reconstruct(weights, features),
        l0_penalty(pi, weights.threshold, recipe.surrogate),
        tanh,
        pull,
        jnp.any(pi > weights.threshold, axis=tuple(range(pi.ndim - 1))),
    )


def _sparse_pass(
    weights: Weights,
    x: Array,
    recipe: Recipe,
    screen: Precision | bool | None,
    capacity: int | None,
) -> _Pass:
    if not visits_entries_only(recipe):
        raise NotImplementedError(
            f"the recipe {recipe.name!r} needs the dense latent (a pre-activation or tanh penalty, "
            "or a surrogate of unbounded support). Pass sparse=False."
        )
    dtype = x.dtype
    reconstruction, activity = sparse_mlp(
        x,
        weights.encoder.astype(dtype),
        weights.decoder.astype(dtype),
        weights.threshold,
        b_in=weights.encoder_bias.astype(dtype),
        b_out=weights.decoder_bias.astype(dtype),
        variant="hard",
        surrogate=recipe.surrogate,
        screen=screen,
        capacity=capacity,
        with_activity=True,
    )
    zero = jnp.zeros((), jnp.float32)
    return _Pass(
        reconstruction, jnp.mean(activity.l0, dtype=jnp.float32), zero, zero, activity.fired > 0
    )
