"""Every branch on a JAX version, each with the version at which it can go."""

from collections.abc import Callable

import jax
from jax.interpreters import partial_eval


def register_dead_code_rule(primitive, rule: Callable) -> None:
    """Registers ``rule(used_outputs, eqn) -> (used_inputs, eqn or None)``.

    JAX 0.12 also passes which inputs are live; the first signature can go when 0.10 and 0.11 do.
    """
    partial_eval.dce_rules[primitive] = lambda used, *live_and_eqn: rule(used, live_and_eqn[-1])


def varying_axes(x) -> frozenset:
    """The mesh axes over which x varies inside a `shard_map`."""
    return jax.typeof(x).manual_axis_type.varying
