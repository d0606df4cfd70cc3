"""The public activations: the thresholded ReLU, its namesakes, and the step."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real, Shaped

from jaxtrelu._primitive.rules import thresholded
from jaxtrelu._primitive.spec import (
    ImplementationName,
    VariantName,
    activation_operands,
    check_zeros,
    checked_spec,
    real_array,
)
from jaxtrelu._surrogates import Surrogate


def thresholded_relu(
    x: Real[ArrayLike, "*shape"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
) -> Real[Array, "*shape"]:
    r"""Thresholded ReLU: ``max(0, x - threshold)`` and its namesakes.

    .. math::
      \mathrm{shift}(x) = \max(0, x - \theta) \qquad
      \mathrm{hard}(x) = x \text{ if } x > \theta \text{ else fill} \qquad
      \mathrm{clamp}(x) = \max(x, \theta)

    Convention at the threshold: the gate is open where ``x > threshold``, strictly. At
    ``x == threshold`` it is closed, and the derivative there is 0, as it is where
    ``x >= threshold + ceiling``. NaN in x or in the threshold gives NaN, and the cotangent passes
    where x is NaN. Closed values are exactly +0.0 (or `fill`, or the threshold), and a closed gate
    passes exactly 0 backwards, whatever the cotangent, unless a surrogate lets it pass.

    Gradients: dx is the cotangent where the gate is open, else 0. The threshold's is minus the
    cotangent where open (``shift``), plus the cotangent where closed (``clamp``), and 0 (``hard``)
    unless a surrogate is given; summed to the threshold's shape. Reverse mode keeps one bit per
    element for the activation (with a surrogate, what its class says on top). Words run on over
    the whole array, also over a batch under `jax.vmap`; where examples are differentiated one by
    one (`jax.vmap` of `jax.grad`, a step of `jax.lax.scan`) each example's last word is padded.

    Args:
      x: array of any shape, floating point or integer.
      threshold: a number, or an array that broadcasts against x to x's shape (per channel, or one
        per element), in x's units. A Python number is taken in x's dtype; an array keeps its own
        precision, and the comparison is made in the promoted dtype. Integer x needs integers, and
        x - threshold wraps where that dtype does not hold it.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``.
      ceiling: for ``shift``: the largest value, a positive Python number: min(x - threshold, m).
      fill: for ``hard``: the value where the gate is closed, a Python number that x's dtype holds.
      surrogate: for ``hard``: what stands in for the impulse at the threshold in the backward pass,
        such as ``jaxtrelu.Rectangle(0.05)``; with its density D and height J = threshold - fill of
        the jump, the threshold receives -J D(x - threshold) times the cotangent, and with
        ``to_input`` x receives the opposite on top of the gate. For ``shift``: the gate is
        smoothed, in the backward pass only, for x and threshold alike, to the integral of D.
      implementation: None chooses a lowering by platform and shape; ``"xla"``, ``"mosaic_tpu"`` or
        ``"experimental_mosaic_gpu"``, of which nothing was timed, asks for one by name.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: an operand is not a real number or array, or a static argument is an array.
      ValueError: shapes that do not broadcast, a number as threshold or fill that is NaN or does
        not fit in the dtype, an unknown variant, or an argument that the variant does not have.
      NotImplementedError: the implementation asked for cannot compute this call, and why.

    Example:
      >>> import jax, jax.numpy as jnp, jaxtrelu
      >>> x = jnp.array([-1.0, 0.5, 1.0, 3.0])
      >>> jaxtrelu.thresholded_relu(x, 0.5).tolist()
      [0.0, 0.0, 0.5, 2.5]
      >>> jaxtrelu.thresholded_relu(x, 0.5, variant="hard").tolist()
      [0.0, 0.0, 1.0, 3.0]
      >>> jax.grad(lambda t: jaxtrelu.thresholded_relu(x, t).sum())(0.5).item()
      -2.0

    Source: shift: shifted ReLU, Mirzadeh et al. 2023, arXiv 2310.04564, with a ceiling Price et al.
    2024, arXiv 2402.16184; hard: Konda et al. 2014, arXiv 1402.3337, and ONNX ThresholdedRelu.
    """
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    return thresholded(*activation_operands(x, threshold, spec), spec)


def shifted_relu(
    x: Real[ArrayLike, "*shape"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    ceiling: float | None = None,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
) -> Real[Array, "*shape"]:
    """Shifted ReLU, ``max(0, x - threshold)``: `thresholded_relu` with ``variant="shift"``.

    Convention at the threshold: the gate is closed at ``x == threshold``, and the derivative 0.

    Args:
      x: array of any shape, floating point or integer.
      threshold: a number or an array that broadcasts against x to x's shape, in x's units.
      ceiling: the largest value, a positive Python number, or None.
      surrogate: smooths the gate in the backward pass, as in `thresholded_relu`, or None.
      implementation: as in `thresholded_relu`.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError, ValueError, NotImplementedError: as `thresholded_relu`.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> jaxtrelu.shifted_relu(jnp.array([0.0, 1.5, 9.0]), 1.0, ceiling=2.0).tolist()
      [0.0, 0.5, 2.0]

    Source: Mirzadeh et al. 2023, arXiv 2310.04564; with a ceiling Price et al. 2024, arXiv
    2402.16184.
    """
    spec = checked_spec("shift", ceiling, 0, surrogate, implementation)
    return thresholded(*activation_operands(x, threshold, spec), spec)


def jump_relu(
    x: Float[ArrayLike, "*shape"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    surrogate: Surrogate,
    implementation: ImplementationName | None = None,
) -> Real[Array, "*shape"]:
    """JumpReLU: x where x > threshold, else 0, with a threshold that learns.

    `thresholded_relu` with ``variant="hard"`` and a surrogate. With its density D the threshold's
    gradient is ``-threshold D(x - threshold)`` times the cotangent, summed to its shape; x's is the
    cotangent where the gate is open (plus ``threshold D(x - threshold)`` of it with `to_input`).
    Higher derivatives are those of these rules: for `Rectangle`, whose density is constant inside
    the window, the second derivative with respect to the threshold is ``-D``.

    Convention at the threshold: closed at ``x == threshold``. The window has two sides: elements
    just below the threshold have value 0 and yet a gradient to it.

    Args:
      x: floating-point array of any shape: the pre-activations.
      threshold: a number or an array that broadcasts against x to x's shape, in x's units; float32
        whatever the dtype of x, or small steps are lost.
      surrogate: such as ``jaxtrelu.Rectangle(0.05)``; its bandwidth is in x's units.
      implementation: as in `thresholded_relu`.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: no surrogate is given; else as `thresholded_relu`.
      ValueError: as `thresholded_relu`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxtrelu
      >>> z = jnp.array([0.10, 0.52, 0.48, 1.0])
      >>> f = lambda t: jaxtrelu.jump_relu(z, t, surrogate=jaxtrelu.Rectangle(0.1))
      >>> [round(v, 4) for v in f(0.5).tolist()]
      [0.0, 0.52, 0.0, 1.0]
      >>> round(jax.grad(lambda t: f(t).sum())(0.5).item(), 4)
      -10.0

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435.
    """
    if surrogate is None:
        raise TypeError(
            "`surrogate` is None, and without one a JumpReLU's threshold does not learn. Pass for "
            "example jaxtrelu.Rectangle(0.05), or call thresholded_relu(..., variant='hard')."
        )
    spec = checked_spec("hard", surrogate=surrogate, implementation=implementation)
    return thresholded(*activation_operands(x, threshold, spec, floating=True), spec)


def step(
    x: Float[ArrayLike, "*shape"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
) -> Real[Array, "*shape"]:
    """Heaviside step: 1 where x > threshold, else 0, as a number: summed, the L0 norm.

    Without a surrogate its gradients are 0. With one of density D, the threshold's is
    ``-D(x - threshold)`` times the cotangent, summed to its shape; x's is 0 (with `to_input`,
    ``D(x - threshold)`` times the cotangent). For an L0 penalty apply it to the pre-activations,
    not to the activation, whose closed entries lie outside the window.

    Convention at the threshold: 0 at ``x == threshold``. NaN gives NaN.

    Args:
      x: floating-point array of any shape.
      threshold: a number or an array that broadcasts against x to x's shape, in x's units.
      surrogate: such as ``jaxtrelu.Rectangle(0.05)``, in x's units, or None.
      implementation: as in `thresholded_relu`.

    Returns:
      An array of x's shape and dtype, of zeros and ones.

    Raises:
      TypeError, ValueError, NotImplementedError: as `thresholded_relu`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxtrelu
      >>> z = jnp.array([0.10, 0.52, 0.48, 1.0])
      >>> l0 = lambda t: jaxtrelu.step(z, t, surrogate=jaxtrelu.Rectangle(0.1)).sum()
      >>> l0(0.5).item(), round(jax.grad(l0)(0.5).item(), 3)
      (2.0, -20.0)

    Source: Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 12.
    """
    spec = checked_spec("hard", surrogate=surrogate, implementation=implementation)
    spec = dataclasses.replace(spec, variant="step")
    return thresholded(*activation_operands(x, threshold, spec, floating=True), spec)


def mean_open(gates: Shaped[Array, "..."], axis: int = -1) -> Float[Array, ""]:
    """L0, the mean number of open features per example, of gates as `step` has them, or booleans.

    Summed in float32 whatever the dtype of the gates, with their gradient.
    """
    return jnp.mean(jnp.sum(gates, axis=axis, dtype=jnp.float32))


def thresholded_glu(
    gate: Float[ArrayLike, "*shape"],
    up: Float[ArrayLike, "*shape"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
) -> Float[Array, "*shape"]:
    """``thresholded_relu(gate, threshold) * up``, elementwise: a gated unit.

    Convention at the threshold: the gate is closed at ``gate == threshold``, and the derivative 0.
    A product, as the field defines it: where the gate is closed the value is ``0 * up``, which is
    NaN beside a NaN or infinite `up`.

    Args:
      gate: array of any shape, floating point.
      up: array of the same shape and dtype.
      threshold: a number or an array that broadcasts against `gate` to its shape, in its units.
      variant: ``"shift"`` or ``"hard"`` (FATReLU).
      ceiling: for ``shift``, as in `thresholded_relu`.
      fill: 0: a closed gate lets nothing through.
      surrogate: as in `thresholded_relu`.
      implementation: as in `thresholded_relu`.

    Returns:
      An array of the shape and dtype of `gate`.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: the shapes or dtypes of `gate` and `up` differ, or the variant or the `fill`
        leaves no zeros; else as `thresholded_relu`.
      NotImplementedError: the implementation asked for cannot compute this call, and why.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> gate, up = jnp.array([0.5, 1.0, 2.0]), jnp.array([3.0, 3.0, 3.0])
      >>> jaxtrelu.thresholded_glu(gate, up, 1.0, variant="hard").tolist()
      [0.0, 0.0, 6.0]

    Source: vLLM's ``fatrelu_and_mul``; Kurtz et al. 2020 (FATReLU).
    """
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    check_zeros(spec)
    gate, threshold = activation_operands(gate, threshold, spec, floating=True, name="gate")
    up = real_array(up, "up")
    if up.shape != gate.shape or up.dtype != gate.dtype:
        raise ValueError(
            f"`up` should have the shape and dtype of `gate`, {gate.shape} and {gate.dtype}, but "
            f"has {up.shape} and {up.dtype}."
        )
    return thresholded(gate, threshold, spec) * up
