"""Where Linen modules keep thresholds: learned ones in "params", all else in "thresholds"."""

from collections.abc import Callable
from typing import Any

import jax
from flax import errors
from flax import linen as nn
from jax.typing import DTypeLike

from jaxtrelu import _layers as core
from jaxtrelu._primitive.spec import Spec, ThresholdLike

#: The collection of what is stored and not learned.
FIXED = "thresholds"


def held(
    module: nn.Module,
    threshold: ThresholdLike,
    shape: tuple,
    *,
    learned: bool,
    spec: Spec,
    dtype: DTypeLike,
) -> Any:
    """The threshold that a module has, made where it is initialised: a number or an array."""
    number = core.static_number(threshold)
    if number is not None and not shape and not learned:
        return number

    def start(key):
        return core.initialise(threshold, key, shape, dtype=dtype, learned=learned, spec=spec)

    if learned:
        return module.param("threshold", start)
    return fixed(
        module,
        "threshold",
        lambda: start(module.make_rng("params") if callable(threshold) else None),
    )


def fixed(module: nn.Module, name: str, start: Callable[[], Any]) -> jax.Array:
    """The value of a variable that is not learned."""
    try:
        return module.variable(FIXED, name, start).value
    except (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError) as error:
        raise _missing(module, name) from error


def value_of(module: nn.Module, threshold: ThresholdLike, *, learned: bool) -> Any:
    """What is stored as a bound module's threshold; the number that it is where nothing is."""
    collection = "params" if learned else FIXED
    stored: Any = module.get_variable(collection, "threshold")
    if stored is not None:
        return nn.meta.unbox(stored)
    number = core.static_number(threshold)
    if learned or number is None:
        raise _missing(module, "threshold", collection)
    return number


def _missing(module: nn.Module, name: str, collection: str = FIXED) -> ValueError:
    path = "/".join(module.path) or "the top module"
    return ValueError(
        f"the variable {name!r} of {type(module).__name__} ({path}) is stored in the collection "
        f"{collection!r}, and is not there. Pass all collections that init returned, such as "
        f"module.apply({{'params': params, {FIXED!r}: thresholds}}, x); and under a lifted "
        f"transformation declare this one, too, such as nn.scan(..., variable_axes={{'params': 0, "
        f"{FIXED!r}: 0}}), or variable_broadcast={FIXED!r} for one threshold shared by all steps."
    )
