"""A sparse autoencoder with JumpReLU as a Flax NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from jaxtrelu._activation import jump_relu
from jaxtrelu.nnx._thresholded_relu import Threshold
from jaxtrelu.sae import _losses as losses
from jaxtrelu.sae._recipes import Recipe
from jaxtrelu.sae._weights import (
    Weights,
    constrained,
    initial_weights,
    input_scale,
    project_out,
)


class InputScale(nnx.Variable):
    """What inputs are multiplied with: stored with the model, and not learned."""


class SparseAutoencoder(nnx.Module):
    """Encoder, JumpReLU, decoder: x̂ = decode(JumpReLU(encode(x), θ)), trained by a recipe.

    Inputs and reconstructions are in the user's units: the scale that the recipe asks for is
    measured once, on the sample, and kept in `input_scale`. Features, thresholds and the recipe's
    bandwidth are in units of the scaled inputs. Both matrices are feature-major, (m, d).

    Args:
      features: number of features, m.
      sample: some unscaled inputs, (n, d), that the scale and the first weights are taken from.
      recipe: ``jaxtrelu.sae.gemma_scope()``, ``anthropic_2025()`` or one of your own.
      rngs: random keys; one is drawn from ``rngs.params``.

    Example:
      >>> from jaxtrelu import sae
      >>> x = jax.random.normal(jax.random.key(0), (256, 8))
      >>> model = SparseAutoencoder(32, x, recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
      >>> model.encode(x).shape, model(x).shape
      ((256, 32), (256, 8))
      >>> len(jax.tree.leaves(nnx.state(model, Threshold)))
      1

      A step as the recipe has it, with the gradient's part along the decoder's rows taken out and
      their norms put back:

      >>> @nnx.jit
      ... def step(model, optimizer, x):
      ...     of = nnx.value_and_grad(lambda model: model.loss(x, 1e-3), has_aux=True)
      ...     (loss, terms), gradient = of(model)
      ...     optimizer.update(model, model.constrained_gradient(gradient))
      ...     model.constrain()
      ...     return terms.l0
      >>> optimizer = nnx.Optimizer(model, model.recipe.optimizer(steps=1000), wrt=nnx.Param)
      >>> l0 = step(model, optimizer, x)

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435; Anthropic's January 2025 circuits update.
    """

    def __init__(self, features: int, sample: ArrayLike, *, recipe: Recipe, rngs: nnx.Rngs) -> None:
        sample = np.asarray(sample, np.float32)
        norms = np.linalg.norm(sample.astype(np.float64), axis=-1)
        if not np.isfinite(norms).all():
            bad = ", ".join(map(str, np.flatnonzero(~np.isfinite(norms))[:10]))
            raise ValueError(f"`sample` holds NaN or infinity in rows {bad} (counted from 0).")
        scale = input_scale(float(norms.mean()), float((norms**2).mean()), sample.shape[-1], recipe)
        weights = initial_weights(rngs.params(), features, sample * scale, recipe)
        self._set(weights, scale, recipe)

    @classmethod
    def from_weights(cls, weights: Weights, scale: float, recipe: Recipe) -> "SparseAutoencoder":
        """The module around weights that `jaxtrelu.sae.train` found, and its scale."""
        model = cls.__new__(cls)
        model._set(weights, scale, recipe)
        return model

    def _set(self, weights: Weights, scale: float, recipe: Recipe) -> None:
        self.recipe = recipe
        self.encoder = nnx.Param(weights.encoder)
        self.encoder_bias = nnx.Param(weights.encoder_bias)
        self.threshold = Threshold(weights.threshold.astype(jnp.float32))
        self.decoder = nnx.Param(weights.decoder)
        self.decoder_bias = nnx.Param(weights.decoder_bias)
        self.input_scale = InputScale(jnp.asarray(scale, jnp.float32))

    @property
    def weights(self) -> Weights:
        """The parameters as the plain pytree that `jaxtrelu.sae` works on."""
        return Weights(*(getattr(self, name)[...] for name in Weights._fields))

    def pre_activations(self, x: ArrayLike) -> jax.Array:
        """π of unscaled inputs (..., d): (..., m)."""
        return losses.pre_activations(self.weights, self._scaled(x))

    def encode(self, x: ArrayLike) -> jax.Array:
        """The features of unscaled inputs (..., d): (..., m), 0 where closed."""
        pi = self.pre_activations(x)
        return jump_relu(pi, self.threshold[...], surrogate=self.recipe.surrogate)

    def decode(self, features: ArrayLike) -> jax.Array:
        """Reconstructions in the units of the unscaled inputs."""
        scaled = losses.reconstruct(self.weights, jnp.asarray(features))
        return scaled / self.input_scale[...].astype(scaled.dtype)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The reconstruction of unscaled inputs (..., d)."""
        return self.decode(self.encode(x))

    def loss(
        self, x: ArrayLike, coefficient: ArrayLike, *, sparse: bool = True
    ) -> tuple[jax.Array, losses.Terms]:
        """The recipe's loss on unscaled inputs (batch, d), in scaled units, and its terms.

        With `sparse`, open entries only are visited where the recipe allows it and more than 32
        features are left closed for each open one (see `jaxtrelu.sparse_mlp`); the same to
        rounding.
        """
        return losses.loss(
            self.weights,
            self._scaled(x),
            jnp.asarray(coefficient),
            self.recipe,
            sparse=sparse and losses.visits_entries_only(self.recipe),
        )

    def constrained_gradient(self, gradient: nnx.State) -> nnx.State:
        """`gradient` of `nnx.grad` as the recipe's optimiser should see it.

        Where decoder rows are of unit norm, without its part parallel to them.
        """
        if not self.recipe.unit_norm_decoder or "decoder" not in gradient:
            return gradient
        decoder: Any = gradient["decoder"]
        tangent = decoder.replace(project_out(decoder[...], self.decoder[...]))
        return nnx.State({**gradient, "decoder": tangent})

    def constrain(self) -> None:
        """Puts the parameters back where the recipe wants them; call it after every update."""
        for name, value in constrained(self.weights, self.recipe)._asdict().items():
            getattr(self, name)[...] = value

    def _scaled(self, x: ArrayLike) -> Any:
        x = jnp.asarray(x)
        if x.shape[-1:] != self.decoder_bias.shape:
            raise ValueError(
                f"x should have {self.decoder_bias.shape[0]} columns, as the model was made for, "
                f"but has shape {x.shape}."
            )
        return x * self.input_scale[...].astype(x.dtype)
