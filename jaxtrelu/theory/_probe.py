"""How much of a label can still be read from activations: measured, by a linear probe."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxtrelu._primitive.spec import real_array
from jaxtrelu.theory._operands import finite, positive


def linear_probe(
    activations: Float[ArrayLike, "rows features"],
    labels: Int[ArrayLike, " rows"],
    held_out: Float[ArrayLike, "others features"],
    held_out_labels: Int[ArrayLike, " others"],
    *,
    ridge: float = 1e-2,
) -> float:
    r"""The accuracy, on held-out rows, of the best linear read-out of a label from activations.

    Ridge regression to one column a class, in closed form; the class whose column is largest is
    what is read. Features are centred and scaled by one number, so that `ridge` means the same for
    any layer. What `information` says of one normal entry, this measures of a layer, whose entries
    depend on each other.

    Args:
      activations: a row an example.
      labels: the class of each, a whole number from 0 on.
      held_out: other rows, to count on.
      held_out_labels: their classes.
      ridge: the penalty, in units of the features' mean variance, greater than 0.

    Returns:
      The share of held-out rows whose class is read right.

    Raises:
      TypeError: activations that are no real arrays, or labels that are not integers.
      ValueError: shapes that do not fit, no rows, NaN or infinity, a label below 0, or a `ridge`
        that is not greater than 0.

    Example:
      >>> import jax
      >>> from jaxtrelu import theory, thresholded_relu
      >>> x = jax.random.normal(jax.random.key(0), (400, 8))
      >>> labels = (x[:, 0] > 0).astype("int32")
      >>> y = thresholded_relu(x, 0.0)
      >>> theory.linear_probe(y[:300], labels[:300], y[300:], labels[300:]) > 0.8
      True

    Source: Alain and Bengio 2016, arXiv 1610.01644, for linear probes.
    """
    x, z = real_array(activations, "activations"), real_array(held_out, "held_out")
    finite(activations=x, held_out=z)
    positive(ridge=np.asarray(ridge))
    y = _labels(labels, "labels", x, "activations")
    truth = _labels(held_out_labels, "held_out_labels", z, "held_out")
    if x.shape[1] != z.shape[1]:
        raise ValueError(
            "`activations` and `held_out` should have the same features, but have shapes "
            f"{x.shape} and {z.shape}."
        )
    # In NumPy's float64: a Gram matrix squares the spread of the features.
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    mean = x.mean(0)
    x, z = x - mean, z - mean
    classes = int(y.max()) + 1
    target = np.eye(classes)[y]
    scale = np.mean(x * x)
    gram = x.T @ x + ridge * (scale or 1.0) * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (target - target.mean(0)))
    read = np.argmax(z @ weights + target.mean(0), axis=1)
    return float(np.mean(read == truth))


def _labels(labels: ArrayLike, name: str, rows, other: str) -> np.ndarray:
    array = np.asarray(real_array(labels, name))
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` should be integers, but has dtype {array.dtype}.")
    if rows.ndim != 2 or array.shape != rows.shape[:1] or not rows.size:
        raise ValueError(
            f"`{other}` should have shape (rows, features) and `{name}` (rows,), and neither be "
            f"empty, but they have {rows.shape} and {array.shape}."
        )
    if array.min() < 0:
        raise ValueError(f"`{name}` should be at least 0, but holds {array.min()}.")
    return array
