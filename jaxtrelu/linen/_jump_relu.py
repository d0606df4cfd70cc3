"""JumpReLU with learned thresholds as a Flax Linen module."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import ImplementationName, Parametrisation, Spec, checked_jump_layer
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.linen._variables import fixed


class JumpReLU(nn.Module):
    """JumpReLU, x where x > threshold and else 0, with one learned threshold per feature.

    As `jaxtrelu.nnx.JumpReLU`, whose documentation holds here, too (convention at the threshold:
    closed at equality), but for where things are: the parameter is ``threshold`` of ``"params"``,
    and the s of ``parametrisation="softplus"`` the variable ``threshold_scale`` of the collection
    ``"thresholds"``, which optimisers do not see, and which `apply` and lifted transformations must
    be given. The L0 penalty is a value that is returned; nothing is sown.

    Attributes:
      threshold: where the thresholds start, a number or (m,), in the units of x; as a tuple of
        numbers, the module stays hashable.
      features, surrogate, implementation, parametrisation, axis, dtype, param_dtype: as in
        `jaxtrelu.nnx.JumpReLU`.

    Raises:
      TypeError, ValueError: as `jaxtrelu.nnx.JumpReLU`, at construction; and where the collection
        ``"thresholds"`` is missing, what to pass.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxtrelu import Rectangle
      >>> from jaxtrelu.linen import JumpReLU
      >>> layer = JumpReLU(4, surrogate=Rectangle(0.1), threshold=0.5)
      >>> x = jnp.array([[0.25, 0.52, 0.48, 1.0]])
      >>> variables = layer.init(jax.random.key(0), x)
      >>> y, l0 = layer.apply(variables, x, with_l0=True)
      >>> l0.item()
      2.0

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435.
    """

    features: int
    surrogate: Surrogate
    threshold: ArrayLike | Sequence[float] = 1e-3
    implementation: ImplementationName | None = None
    parametrisation: Parametrisation = "raw"
    axis: int = -1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        spec = checked_jump_layer(
            self.threshold,
            features=self.features,
            surrogate=self.surrogate,
            implementation=self.implementation,
            parametrisation=self.parametrisation,
            axis=self.axis,
            param_dtype=self.param_dtype,
        )
        object.__setattr__(self, "_spec", spec)  # modules are frozen
        super().__post_init__()

    def setup(self) -> None:
        """Makes the parameter, and the scale where there is one."""
        scale = None
        if self.parametrisation == "softplus":
            scale = fixed(
                self,
                "threshold_scale",
                lambda: core.softplus_scale(self.threshold, self.param_dtype),
            )
        shape = (int(self.features),)

        def start(key):
            return core.unconstrained(self.threshold, scale, shape, self.param_dtype)

        self._scale = scale
        self._stored = self.param("threshold", start)

    def threshold_value(self) -> jax.Array:
        """What x is compared with, of a bound module, as `jaxtrelu.nnx.JumpReLU` has it.

        Returns:
          (m,), of dtype `param_dtype`, never negative, in the units of x.

        Example:
          >>> from jaxtrelu import Rectangle
          >>> layer = JumpReLU(
          ...     2, surrogate=Rectangle(0.1), threshold=0.5, parametrisation="softplus")
          >>> variables = layer.init(jax.random.key(0), jnp.ones(2))
          >>> layer.apply(variables, method="threshold_value").round(3).tolist()
          [0.5, 0.5]
        """
        return core.constrained(self._stored, self._scale)

    def __call__(
        self, x: ArrayLike, with_l0: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Applies the activation; closed where x is equal to the threshold.

        Args:
          x: floating-point array of any shape with m features along the axis: pre-activations.
          with_l0: whether to return the L0 penalty, `l0` of x, as well.

        Returns:
          The activation, of x's shape and of x's dtype or the layer's `dtype`; with `with_l0` the
          pair of it and a float32 scalar.

        Raises:
          TypeError: x is not a floating-point array.
          ValueError: x does not have m features along the axis.
        """
        spec: Spec = self._spec  # type: ignore[attr-defined]
        axes = (int(self.axis),)
        theta = self.threshold_value()
        y = core.apply(x, theta, spec, axes=axes, dtype=self.dtype, floating=True)
        return (y, self.l0(x)) if with_l0 else y

    def l0(self, x: ArrayLike) -> jax.Array:
        """Mean number of open features per example: as `jaxtrelu.nnx.JumpReLU.l0`.

        Args:
          x: what the layer is applied to (the pre-activations), not what it returns.

        Returns:
          A float32 scalar with the surrogate's gradient.

        Example:
          >>> from jaxtrelu import Rectangle
          >>> layer = JumpReLU(2, surrogate=Rectangle(0.1), threshold=0.5)
          >>> x = jnp.array([0.2, 0.7])
          >>> layer.apply(layer.init(jax.random.key(0), x), x, method="l0").item()
          1.0
        """
        spec: Spec = self._spec  # type: ignore[attr-defined]
        theta = self.threshold_value()
        return core.open_features(x, theta, spec, axis=int(self.axis), dtype=self.dtype)
