"""Flax Linen layers: `ThresholdedReLU`, `JumpReLU` and `CompactMLP`, as those of `jaxtrelu.nnx`.

In every layer a learned threshold is the parameter called ``"threshold"``; what is stored and not
learned is in the collection ``"thresholds"``; and ``module.apply(variables,
method="threshold_value")`` is what x is compared with.

To treat thresholds apart in Optax, label parameters by their names. Here weights are decayed and
thresholds are not:

>>> import jax, jax.numpy as jnp, optax
>>> from flax import linen as nn
>>> from jaxtrelu.linen import ThresholdedReLU
>>> network = nn.Sequential([nn.Dense(3), ThresholdedReLU(0.5, axis=-1, learned=True)])
>>> params = network.init(jax.random.key(0), jnp.ones(2))["params"]
>>> decayed = jax.tree_util.tree_map_with_path(
...     lambda path, _: "threshold" not in jax.tree_util.keystr(path[-1:]), params)
>>> decayed["layers_0"], decayed["layers_1"]
({'bias': True, 'kernel': True}, {'threshold': False})
>>> optimizer = optax.adamw(1e-3, mask=decayed)
"""

from jaxtrelu._layers import flax_is_missing

try:
    from jaxtrelu.linen._compact import CompactMLP
    from jaxtrelu.linen._jump_relu import JumpReLU
    from jaxtrelu.linen._thresholded_relu import ThresholdedReLU
except ImportError as error:
    raise flax_is_missing(error, __name__) from error

__all__ = ["CompactMLP", "JumpReLU", "ThresholdedReLU"]
