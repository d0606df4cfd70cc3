"""A recipe as JSON, with every setting: a name alone would mean something else tomorrow."""

import dataclasses
from typing import Any

from jaxtrelu._surrogates import Gaussian, Rectangle, Sigmoid, Triangle
from jaxtrelu.sae._recipes import Recipe

_SURROGATES = {kind.__name__: kind for kind in (Gaussian, Rectangle, Sigmoid, Triangle)}


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe, in values that JSON has.

    Raises:
      ValueError: its surrogate is not one of the library's.
    """
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    kind = type(recipe.surrogate).__name__
    if _SURROGATES.get(kind) is not type(recipe.surrogate):
        raise ValueError(
            f"the surrogate {kind} of the recipe is not one of the library's, so no file can hold "
            "it: save dataclasses.replace(model, recipe=None)."
        )
    values["surrogate"] = {"kind": kind, **dataclasses.asdict(recipe.surrogate)}
    return values


def from_json(values: Any) -> Recipe:
    """The recipe. Raises KeyError, TypeError or ValueError where it cannot be understood."""
    surrogate = dict(values["surrogate"])
    kind = _SURROGATES[surrogate.pop("kind")]
    return Recipe(**{**values, "surrogate": kind(**surrogate)})
