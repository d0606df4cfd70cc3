"""The parameters of a sparse autoencoder: how they start, and what is kept true of them.

Both matrices are stored feature-major, (features, dimension): row i of the decoder is the direction
that feature i writes, and rows are what a sparse product gathers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from jaxtrelu.sae._recipes import Recipe


class Weights(NamedTuple):
    """A sparse autoencoder's parameters, a pytree.

    d is the inputs' dimension, m the features', and d_out = d but in a transcoder.
    """

    encoder: Array
    """(m, d): π = x @ encoderᵀ + encoder_bias."""
    encoder_bias: Array
    """(m,)."""
    threshold: Array
    """(m,), float32 whatever the others are: feature i is open where π_i > threshold_i."""
    decoder: Array
    """(m, d_out): x̂ = f @ decoder + decoder_bias."""
    decoder_bias: Array
    """(d_out,)."""


def initial_weights(
    key: Array,
    features: int,
    sample: Float[Array | np.ndarray, "n d"],
    recipe: Recipe,
    targets: Float[Array | np.ndarray, "n d_out"] | None = None,
) -> Weights:
    """Weights as `recipe` starts them.

    With targets encoder and decoder are of different spaces and are drawn independently, each as
    the recipe draws it: so do Dunefsky et al. 2024 (arXiv 2406.11944), with decoder rows of unit
    norm. (EleutherAI's sparsify, of Paulo et al. 2025, arXiv 2501.18823, begins with a decoder of
    zeros, which rows of unit norm rule out.)

    Args:
      key: a key of `jax.random`.
      features: m, at least 1.
      sample: some scaled inputs, (n, d). Its mean starts the decoder bias; the "uniform"
        initialisation also measures on it how often features open.
      recipe: a recipe; see `Recipe.initialisation`.
      targets: what a transcoder should make of the sample, scaled, (n, d_out), whose mean starts
        the decoder bias then; None: the sample itself.

    Returns:
      `Weights` in float32.

    Raises:
      ValueError: `features` is less than 1, or `sample` is not a matrix.
    """
    if features < 1:
        raise ValueError(f"`features` should be at least 1, but is {features!r}.")
    sample = jnp.asarray(sample, jnp.float32)
    if sample.ndim != 2:
        raise ValueError(
            "`sample` should have shape (examples, dimension), but has shape "
            f"{tuple(sample.shape)}. Pass a matrix with one example per row."
        )
    dimension = sample.shape[1]
    wanted = sample if targets is None else jnp.asarray(targets, jnp.float32)
    # Tied without targets: of one space, and one draw.
    to, draws = wanted.shape[1], [key] if targets is None else jax.random.split(key)
    threshold = jnp.full((features,), recipe.initial_threshold, jnp.float32)
    if recipe.initialisation == "tied_unit":
        decoder = unit_rows(jax.random.normal(draws[0], (features, to), jnp.float32))
        # A copy: a training step donates its state, and no buffer can be donated twice.
        encoder, bias = jnp.copy(decoder), jnp.zeros((features,), jnp.float32)
        if targets is not None:
            encoder = unit_rows(jax.random.normal(draws[1], (features, dimension), jnp.float32))
        if recipe.initial_norm != 1:
            encoder = recipe.initial_norm * encoder
            if not recipe.unit_norm_decoder:
                decoder = recipe.initial_norm * decoder
    else:
        decoder = _uniform(draws[0], features, to)
        encoder = decoder if targets is None else _uniform(draws[1], features, dimension)
        encoder = encoder * (dimension / features)
        share = min(0.5, 10_000 / features)
        quantile = jnp.quantile(sample @ encoder.T, 1 - share, axis=0)
        bias = threshold - quantile
    return Weights(encoder, bias, threshold, decoder, jnp.mean(wanted, axis=0))


def _uniform(key: Array, features: int, dimension: int) -> Array:
    """U(−1/√d, 1/√d), (m, d)."""
    bound = dimension**-0.5
    return jax.random.uniform(key, (features, dimension), jnp.float32, -bound, bound)


def unit_rows(matrix: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """A matrix with every row divided by its norm; a row of zeros stays one.

    Args:
      matrix: (m, d).

    Returns:
      (m, d), in the dtype of `matrix`.
    """
    norm = jnp.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / jnp.where(norm > 0, norm, 1)


def project_out(gradient: Float[Array, "m d"], rows: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """A gradient without its part parallel to the rows that it belongs to.

    What is left is tangent to the sphere, so an optimiser's moments are not filled with a motion
    that the next normalisation undoes.

    Args:
      gradient: (m, d).
      rows: (m, d), of unit norm.

    Returns:
      (m, d), orthogonal to `rows`, row by row.

    >>> rows = jnp.array([[1.0, 0.0]])
    >>> project_out(jnp.array([[3.0, 4.0]]), rows).tolist()
    [[0.0, 4.0]]
    """
    return gradient - jnp.sum(gradient * rows, axis=1, keepdims=True) * rows


def constrained_gradient(gradient: Weights, weights: Weights, recipe: Recipe) -> Weights:
    """The gradient as the optimiser should see it: tangent, where decoder rows have norm 1.

    Args:
      gradient: of the loss, with respect to `weights`.
      weights: the parameters.
      recipe: a recipe; see `Recipe.unit_norm_decoder`.

    Returns:
      The gradient, with that of the decoder projected where the recipe asks for it.
    """
    if not recipe.unit_norm_decoder:
        return gradient
    return gradient._replace(decoder=project_out(gradient.decoder, weights.decoder))


def constrained(weights: Weights, recipe: Recipe) -> Weights:
    """Weights after an update, back where they belong: thresholds ≥ 0, decoder rows of norm 1.

    Thresholds are projected here and not clipped in the forward pass, which would leave one that
    touched zero without a gradient.

    Args:
      weights: the parameters after an optimiser's update.
      recipe: a recipe; see `Recipe.unit_norm_decoder`.

    Returns:
      The weights, projected.
    """
    weights = weights._replace(threshold=jnp.maximum(weights.threshold, 0))
    if not recipe.unit_norm_decoder:
        return weights
    return weights._replace(decoder=unit_rows(weights.decoder))


def revived(
    weights: Weights,
    silent: Bool[Array, " m"],
    x: Float[Array, "batch d"],
    residual: Float[Array, "batch d_out"],
    key: Array,
    recipe: Recipe,
    targets: Float[Array, "batch d_out"] | None = None,
) -> Weights:
    """Weights in which silent features start again, where the reconstruction is worst.

    Neuron resampling: each silent feature is given an example, drawn with a probability
    proportional to the square of its error. Its decoder row becomes the example's direction (less
    the decoder's bias), its encoder row the same at a fifth of the mean norm of the living
    encoder rows, its bias 0, and its threshold that of the start, or half of the example's
    pre-activation where that is less: so it is open there. With `resample_from="residuals"` in the
    recipe the direction is that of the example's residual: what other features write already is
    not started twice.

    With targets the decoder row becomes the direction of the example's target (less the decoder's
    bias), or of its residual, and the encoder row that of the example, less the batch's mean.

    Args:
      weights: the parameters.
      silent: (m,), bool: which features to start again.
      x: scaled inputs, (batch, d).
      residual: x − x̂, (batch, d), or y − ŷ, (batch, d_out); the error of an example is its squared
        norm.
      key: a key of `jax.random`.
      recipe: a recipe, for the threshold at the start and `Recipe.resample_from`.
      targets: y, scaled, (batch, d_out), of a transcoder; None: x.

    Returns:
      `Weights`; those of other features are as they were.

    Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling (which
    has no thresholds, and no transcoders: what is done with targets is this library's).
    """
    odds = 2 * jnp.log(jnp.maximum(jnp.sum(residual**2, axis=1), 1e-30))
    drawn = jax.random.categorical(key, odds, shape=silent.shape)
    wanted = x if targets is None else targets
    start = residual if recipe.resample_from == "residuals" else wanted - weights.decoder_bias
    written = read = unit_rows(start[drawn])
    if targets is not None:
        read = unit_rows((x - jnp.mean(x, axis=0))[drawn])
    norm = jnp.linalg.norm(weights.encoder, axis=1)
    living = jnp.sum(~silent)
    mean = jnp.sum(jnp.where(silent, 0, norm)) / jnp.maximum(living, 1)
    mean = jnp.where(living > 0, mean, 1.0)
    column = silent[:, None]
    encoder = 0.2 * mean * read
    pi = jnp.maximum(jnp.sum(encoder * x[drawn], axis=1), 0)
    threshold = jnp.minimum(recipe.initial_threshold, pi / 2)
    return weights._replace(
        encoder=jnp.where(column, encoder, weights.encoder),
        encoder_bias=jnp.where(silent, 0, weights.encoder_bias),
        threshold=jnp.where(silent, threshold, weights.threshold),
        decoder=jnp.where(column, written, weights.decoder),
    )


def input_scale(mean_norm: float, mean_square_norm: float, dimension: int, recipe: Recipe) -> float:
    """The number that `recipe` multiplies inputs with.

    Args:
      mean_norm: mean of ‖x‖ over the data.
      mean_square_norm: mean of ‖x‖² over the data.
      dimension: d.
      recipe: a recipe; see `Recipe.input_scaling`.

    Returns:
      A positive number.

    Raises:
      ValueError: the inputs are all zero.
    """
    if not mean_square_norm > 0:
        raise ValueError("the inputs are all zero: there is nothing to scale or to learn.")
    if recipe.input_scaling == "unit_mean_square":
        return float(mean_square_norm**-0.5)
    if recipe.input_scaling == "sqrt_dimension":
        return float(dimension**0.5 / mean_norm)
    return float(recipe.input_scaling / mean_norm)
