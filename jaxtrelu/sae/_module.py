"""A sparse autoencoder with JumpReLU as a Flax NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from jaxtrelu._activation import jump_relu
from jaxtrelu._primitive.spec import whole_number
from jaxtrelu.nnx import Threshold
from jaxtrelu.sae import _losses as losses
from jaxtrelu.sae._model import Autoencoder, in_one_scale
from jaxtrelu.sae._recipes import Recipe
from jaxtrelu.sae._rows import array_of, check_unmasked
from jaxtrelu.sae._weights import (
    Weights,
    constrained,
    initial_weights,
    input_scale,
    project_out,
)
from jaxtrelu.sparse._screen import Precision


class InputScale(nnx.Variable):
    """What inputs are multiplied with: stored with the model, and not learned.

    Example:
      >>> from jaxtrelu.sae import InputScale
      >>> InputScale(jnp.float32(2.0))[...].item()
      2.0
    """


class SparseAutoencoder(nnx.Module):
    """Encoder, JumpReLU, decoder: x̂ = decode(JumpReLU(encode(x), θ)), trained by a recipe.

    Inputs and reconstructions are in the user's units: the scale that the recipe asks for is
    measured once, on the sample, and kept in `input_scale`. Features, thresholds and the recipe's
    bandwidth are in units of the scaled inputs. Convention at the threshold: a feature is open
    where its pre-activation is greater, strictly.

    The attributes `encoder` (m, d), `encoder_bias` (m,), `decoder` (m, d), `decoder_bias` (d,) are
    `nnx.Param`, both matrices feature-major; `threshold` (m,) is a `jaxtrelu.nnx.Threshold`. All
    are float32 at the start.

    Args:
      features: number of features, m.
      sample: some unscaled inputs, (n, d), that the scale and the first weights are taken from.
      recipe: ``jaxtrelu.sae.gemma_scope()``, ``anthropic_2025()`` or one of your own.
      rngs: random keys; one is drawn from ``rngs.params``.

    Raises:
      TypeError: `features` is not a whole number.
      ValueError: the sample is not a matrix, or not finite, or all zero, or has masked entries.

    Example:
      >>> from flax import nnx
      >>> from jaxtrelu import sae
      >>> x = jax.random.normal(jax.random.key(0), (256, 8))
      >>> model = sae.SparseAutoencoder(32, x, recipe=sae.gemma_scope(), rngs=nnx.Rngs(0))
      >>> model.encode(x).shape, model(x).shape
      ((256, 32), (256, 8))

      A step as the recipe has it, with the gradient's part along the decoder's rows taken out and
      their norms put back (so few features are as fast with dense products):

      >>> @nnx.jit
      ... def step(model, optimizer, x):
      ...     of = nnx.value_and_grad(lambda model: model.loss(x, 1e-3, sparse=False), has_aux=True)
      ...     (loss, terms), gradient = of(model)
      ...     optimizer.update(model, model.constrained_gradient(gradient))
      ...     model.constrain()
      ...     return terms.l0
      >>> optimizer = nnx.Optimizer(model, model.recipe.optimizer(steps=1000), wrt=nnx.Param)
      >>> l0 = step(model, optimizer, x)

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435; Anthropic's January 2025 circuits update.
    """

    def __init__(self, features: int, sample: ArrayLike, *, recipe: Recipe, rngs: nnx.Rngs) -> None:
        features = whole_number(features, "features")
        sample = np.asarray(array_of(sample, "`sample`"), np.float32)
        if sample.ndim != 2:
            raise ValueError(
                f"`sample` should have shape (examples, dimension), but has shape {sample.shape}. "
                "Pass a matrix with one example per row."
            )
        norms = np.linalg.norm(sample.astype(np.float64), axis=-1)
        if not np.isfinite(norms).all():
            bad = ", ".join(map(str, np.flatnonzero(~np.isfinite(norms))[:10]))
            raise ValueError(f"`sample` holds NaN or infinity in rows {bad} (counted from 0).")
        scale = input_scale(float(norms.mean()), float((norms**2).mean()), sample.shape[-1], recipe)
        weights = initial_weights(rngs.params(), features, sample * scale, recipe)
        self._set(weights, scale, recipe)

    @classmethod
    def from_weights(cls, weights: Weights, scale: float, recipe: Recipe) -> "SparseAutoencoder":
        """The module around weights that `jaxtrelu.sae.run` found.

        Args:
          weights: the parameters; they are copied.
          scale: what the training multiplied inputs with: `Result.scale`.
          recipe: the recipe of the training.

        Raises:
          ValueError: the weights' shapes do not go together, or are those of a transcoder, or the
            scale is not above 0.

        Example:
          >>> import dataclasses
          >>> from jaxtrelu import sae
          >>> recipe = dataclasses.replace(sae.short_run(), batch_size=64)
          >>> x = np.random.default_rng(0).normal(size=(128, 6)).astype(np.float32)
          >>> found = sae.run(sae.Rows(x), sae.Settings(12, 2, recipe, sparse=False))
          >>> model = sae.SparseAutoencoder.from_weights(found.weights, found.scale, recipe)
          >>> model(x).shape
          (128, 6)
        """
        _check_weights(weights, scale)
        m, d = weights.encoder.shape
        # Only the structure is made: nothing is drawn or measured.
        model = nnx.eval_shape(
            lambda: cls(m, np.ones((1, d), np.float32), recipe=recipe, rngs=nnx.Rngs(0))
        )
        model._set(jax.tree.map(jnp.array, weights), scale, recipe)
        return model

    @classmethod
    def from_model(cls, model: Autoencoder, recipe: Recipe | None = None) -> "SparseAutoencoder":
        """The module of a model that `jaxtrelu.sae.train` or `load` returned, to train it further.

        Args:
          model: an autoencoder. What the module has no place for is folded into the weights.
          recipe: how to train it; None: as the model says.

        Raises:
          ValueError: the model is a transcoder, has a skip connection or normalises rows; or it
            says no recipe, and none is passed.

        Example:
          >>> from jaxtrelu import sae
          >>> x = np.random.default_rng(0).normal(size=(128, 6)).astype(np.float32)
          >>> model = sae.train(x, features=12, steps=2)
          >>> module = sae.SparseAutoencoder.from_model(model)
          >>> bool((module.encode(x) == module.to_model().encode(x)).all())
          True
        """
        recipe = model.recipe if recipe is None else recipe
        if recipe is None:
            raise ValueError(
                "the model does not say how it was trained: pass a recipe, such as "
                "jaxtrelu.sae.gemma_scope()."
            )
        return cls.from_weights(*in_one_scale(model), recipe)

    def to_model(self) -> Autoencoder:
        """The module as an `Autoencoder`: to be saved, evaluated and looked at.

        Returns:
          An `Autoencoder` with copies of the parameters.

        Example: see `from_model`.
        """
        scale = float(self.input_scale[...])
        weights = Weights(*(jnp.array(value) for value in self.weights))
        return Autoencoder(weights, input_scale=scale, output_scale=scale, recipe=self.recipe)

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
        """The parameters as the plain pytree that `jaxtrelu.sae` works on, for scaled inputs."""
        return Weights(*(getattr(self, name)[...] for name in Weights._fields))

    @property
    def threshold_value(self) -> jax.Array:
        """What pre-activations are compared with: (m,), float32, in units of the scaled inputs."""
        return self.threshold[...]

    def pre_activations(self, x: ArrayLike) -> jax.Array:
        """π of unscaled inputs.

        Args:
          x: (..., d), unscaled.

        Returns:
          (..., m), in x's dtype and in units of the scaled inputs.

        Raises:
          ValueError: x does not have d columns.

        Example:
          >>> from jaxtrelu import sae
          >>> x = np.eye(4, dtype=np.float32)
          >>> model = sae.SparseAutoencoder(6, x, recipe=sae.short_run(), rngs=nnx.Rngs(0))
          >>> is_open = model.pre_activations(x) > model.threshold_value
          >>> bool((is_open == (model.encode(x) != 0)).all())
          True
        """
        return losses.pre_activations(self.weights, self._scaled(x))

    def encode(self, x: ArrayLike) -> jax.Array:
        """The features of unscaled inputs: JumpReLU(π), 0 where π ≤ θ.

        Args:
          x: (..., d), unscaled.

        Returns:
          (..., m), in x's dtype and in units of the scaled inputs.

        Raises:
          ValueError: x does not have d columns.

        Example: see the class.
        """
        pi = self.pre_activations(x)
        return jump_relu(pi, self.threshold_value, surrogate=self.recipe.surrogate)

    def decode(self, features: ArrayLike) -> jax.Array:
        """Reconstructions from features.

        Args:
          features: (..., m), as `encode` returns them.

        Returns:
          (..., d), in the dtype of `features` and in the units of the unscaled inputs.

        Example:
          >>> from jaxtrelu import sae
          >>> x = np.eye(4, dtype=np.float32)
          >>> model = sae.SparseAutoencoder(6, x, recipe=sae.short_run(), rngs=nnx.Rngs(0))
          >>> bool((model.decode(model.encode(x)) == model(x)).all())
          True
        """
        scaled = losses.reconstruct(self.weights, jnp.asarray(features))
        return scaled / self.input_scale[...].astype(scaled.dtype)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The reconstruction of unscaled inputs (..., d), of their shape, dtype and units."""
        return self.decode(self.encode(x))

    def loss(
        self,
        x: ArrayLike,
        coefficient: ArrayLike,
        *,
        target_l0: float | None = None,
        sparse: bool = True,
        screen: Precision | bool | None = None,
    ) -> tuple[jax.Array, losses.Terms]:
        """The recipe's loss on unscaled inputs, in scaled units, and its terms.

        Args:
          x: (batch, d), unscaled.
          coefficient: λ, a number.
          target_l0: the target of a recipe whose penalty has one.
          sparse: whether to visit open entries only, where the recipe allows it and more than 32
            features are left closed for each open one (see `jaxtrelu.sparse_mlp`); the same to
            rounding.
          screen: how the first product is screened there, "int8" or "bfloat16"; see
            `jaxtrelu.sparse_mlp`. None: not at all.

        Returns:
          A float32 scalar to be differentiated with respect to the model, and `sae.Terms`.

        Raises:
          ValueError: x does not have d columns; a `screen` where no entries are skipped.

        Example: see the class.
        """
        return losses.loss(
            self.weights,
            self._scaled(x),
            jnp.asarray(coefficient),
            self.recipe,
            target_l0=target_l0,
            sparse=sparse and losses.visits_entries_only(self.recipe),
            screen=screen,
        )

    def constrained_gradient(self, gradient: nnx.State) -> nnx.State:
        """A gradient as the recipe's optimiser should see it.

        Args:
          gradient: of `nnx.grad` with respect to the model.

        Returns:
          The same; where the recipe keeps decoder rows of unit norm, without its part parallel to
          them.

        Example: see the class.
        """
        if not self.recipe.unit_norm_decoder or "decoder" not in gradient:
            return gradient
        decoder: Any = gradient["decoder"]
        tangent = decoder.replace(project_out(decoder[...], self.decoder[...]))
        return nnx.State({**gradient, "decoder": tangent})

    def constrain(self) -> None:
        """Puts the parameters back where the recipe wants them; call it after every update.

        Thresholds below 0 go to 0, and decoder rows to norm 1 where the recipe keeps them there.

        Example: see the class.
        """
        for name, value in constrained(self.weights, self.recipe)._asdict().items():
            getattr(self, name)[...] = value

    def _scaled(self, x: ArrayLike) -> Any:
        check_unmasked(x, "x")
        x = jnp.asarray(x)
        if x.shape[-1:] != self.decoder_bias.shape:
            raise ValueError(
                f"x should have {self.decoder_bias.shape[0]} columns, as the model was made for, "
                f"but has shape {x.shape}."
            )
        return x * self.input_scale[...].astype(x.dtype)


def _check_weights(weights: Weights, scale: float) -> None:
    m, d = jnp.shape(weights.encoder)
    to = jnp.shape(weights.decoder_bias)
    if to != (d,) and jnp.shape(weights.decoder) == (m, *to):
        raise ValueError(
            f"these are the weights of a transcoder, from {d} to {to[0]} dimensions, which is no "
            "SparseAutoencoder: take jaxtrelu.sae.Autoencoder(weights), which is a pytree, and "
            "jaxtrelu.sae.loss with its targets."
        )
    wanted = Weights((m, d), (m,), (m,), (m, d), (d,))  # type: ignore[arg-type]
    for name, shape in wanted._asdict().items():
        found = jnp.shape(getattr(weights, name))
        if found != shape:
            raise ValueError(
                f"`{name}` should have shape {shape} beside an encoder of shape {(m, d)}, but has "
                f"shape {found}."
            )
    if not 0 < scale < np.inf:
        raise ValueError(f"`scale` should be finite and greater than 0, but is {scale!r}.")
