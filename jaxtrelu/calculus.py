"""The calculus of the thresholded ReLU: its derivative and its antiderivative, in closed form."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtrelu import variants
from jaxtrelu._door import canonical, canonical_spec
from jaxtrelu.operation import thresholded
from jaxtrelu.variants import Spec


def derivative(
    x: ArrayLike,
    threshold: ArrayLike = 1.0,
    *,
    variant: str = "shift",
    ceiling: float | None = None,
) -> jax.Array:
    """The derivative of `thresholded_relu` with respect to x: 1 where the gate is open, else 0.

    Convention at the threshold: 0 at ``x == threshold``, and 0 where ``x >= threshold + ceiling``.
    Where x is NaN it is 1, which is what `jax.grad` multiplies the cotangent with there. The
    impulse of ``hard`` at the threshold is not a value and is left out.

    Args:
      x: array of any shape, floating point or integer.
      threshold: a number or an array that broadcasts against x to x's shape, in x's units.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``; without a ceiling all three agree.
      ceiling: for ``shift``, a positive Python number.

    Returns:
      An array of x's shape and dtype. Its own derivatives are exactly 0.

    Raises:
      TypeError, ValueError: as `thresholded_relu`.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> jaxtrelu.derivative(jnp.array([0.0, 1.0, 1.5, 4.0]), 1.0, ceiling=2.0).tolist()
      [0.0, 0.0, 1.0, 0.0]

    Source: the definition, and for the convention PyTorch's threshold_backward.
    """
    spec = canonical_spec(variant, ceiling)
    x, threshold = canonical(x, threshold, spec)
    return variants.gate(x, threshold, spec).astype(x.dtype)


def antiderivative(
    x: ArrayLike,
    threshold: ArrayLike = 1.0,
    *,
    variant: str = "shift",
    ceiling: float | None = None,
    fill: float = 0,
) -> jax.Array:
    r"""The integral of `thresholded_relu` over x from the threshold, in closed form.

    With :math:`r = \max(0, x - \theta)`:

    .. math::
      \mathrm{shift}: r^2/2 \qquad
      \mathrm{hard}: r(r + 2\theta)/2 + \mathrm{fill} \cdot \min(x - \theta, 0) \qquad
      \mathrm{clamp}: r^2/2 + \theta (x - \theta)

    and with a ceiling m, :math:`r_m^2/2 + m (r - r_m)` where :math:`r_m = \min(r, m)`.

    Continuous; 0 at ``x == threshold``, and below it for ``shift`` and for ``hard`` with fill 0.
    Its derivative with respect to x is `thresholded_relu`, with the same convention at the
    threshold, and its second one is `derivative`.

    Args:
      x: floating-point array of any shape.
      threshold: a number or an array that broadcasts against x to x's shape, in x's units.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``.
      ceiling: for ``shift``, a positive Python number.
      fill: for ``hard``, the value where the gate is closed.

    Returns:
      An array of x's shape and dtype, computed in float32 at least; in x's units squared.

    Raises:
      TypeError: x is not floating point; else as `thresholded_relu`.
      ValueError: as `thresholded_relu`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxtrelu
      >>> jaxtrelu.antiderivative(jnp.array([0.0, 1.0, 3.0]), 1.0).tolist()
      [0.0, 0.0, 2.0]
      >>> jax.grad(jaxtrelu.antiderivative)(3.0, 1.0).item()
      2.0

    Source: the definition.
    """
    spec = canonical_spec(variant, ceiling, fill)
    x, threshold = canonical(x, threshold, spec, floating=True)
    dtype = x.dtype
    wide = variants.computation_dtype(dtype, threshold.dtype, jnp.float32)
    x, threshold = x.astype(wide), threshold.astype(wide)
    # Through the activation itself, so that every derivative follows its convention.
    above = thresholded(x, threshold, Spec("shift"))
    if spec.ceiling is not None:
        capped = thresholded(x, threshold, spec)
        area = 0.5 * capped * capped + spec.ceiling * (above - capped)
    elif variant == "clamp":
        area = 0.5 * above * above + threshold * (x - threshold)
    elif variant == "hard":
        area = 0.5 * above * (above + 2 * threshold)
        if fill:
            area = area + fill * ((x - threshold) - above)
    else:
        area = 0.5 * above * above
    return area.astype(dtype)
