"""The calculus of the thresholded ReLU: its derivative and its antiderivative, in closed form."""

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.rules import thresholded
from jaxtrelu._primitive.spec import (
    Spec,
    VariantName,
    accumulator_dtype,
    activation_operands,
    ceiling_in,
    checked_spec,
)


def derivative(
    x: Real[ArrayLike, "*shape"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
) -> Real[Array, "*shape"]:
    """The derivative of `thresholded_relu` with respect to x: 1 where the gate is open, else 0.

    Convention at the threshold: 0 at ``x == threshold``, and 0 where ``x >= threshold + ceiling``.
    Where x is NaN it is 1, which is what `jax.grad` multiplies the cotangent with there. The
    impulse of ``hard`` at the threshold is not a value and is left out.

    Args:
      x: array of any shape, floating point or integer.
      threshold: a number or an array that broadcasts against x to x's shape, in x's units.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``; without a ceiling all three agree.
      ceiling: for ``shift``, a positive Python number.
      fill: for ``hard``; makes no difference here, and is taken so that one set of options does for
        function, derivative and antiderivative.

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
    spec = checked_spec(variant, ceiling, fill)
    x, threshold = activation_operands(x, threshold, spec)
    slope = formulas.gate(x, threshold, spec).astype(x.dtype)
    return slope if spec.traits.input_slope == 1 else spec.traits.input_slope * slope


def antiderivative(
    x: Float[ArrayLike, "*shape"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
) -> Float[Array, "*shape"]:
    r"""The integral of `thresholded_relu` over x from the threshold, in closed form.

    With :math:`r = \max(0, x - \theta)`:

    .. math::
      \mathrm{shift}: r^2/2 \qquad
      \mathrm{hard}: r(r + 2\theta)/2 + \mathrm{fill} \cdot \min(x - \theta, 0) \qquad
      \mathrm{clamp}: r^2/2 + \theta (x - \theta)

    and with a ceiling m, :math:`r_m^2/2 + m (r - r_m)` where :math:`r_m = \min(r, m)`.

    Continuous; 0 at ``x == threshold``, and below it for ``shift`` and for ``hard`` with fill 0.
    Its derivative with respect to x is `thresholded_relu`, with the same convention at the
    threshold, and its second one is `derivative`. NaN in x or in the threshold gives NaN, also as
    the derivative. (From an infinity to itself the integral is 0, and so are its derivatives.)

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
    spec = checked_spec(variant, ceiling, fill)
    x, threshold = activation_operands(x, threshold, spec, floating=True)
    dtype = x.dtype
    accumulate = accumulator_dtype(dtype, threshold.dtype)
    x, threshold = x.astype(accumulate), threshold.astype(accumulate)
    # Through the activation itself, so that every derivative follows its convention.
    above = thresholded(x, threshold, Spec("shift"))
    integral = spec.traits.integral
    assert integral is not None, "every variant that can be passed has an integral"
    ceiling, fill = ceiling_in(spec, accumulate), float(spec.fill)
    if ceiling is None:
        return integral(above, x, threshold, fill).astype(dtype)
    capped = thresholded(x, threshold, spec)
    area = integral(capped, x, threshold, fill) + ceiling * (above - capped)
    return area.astype(dtype)
