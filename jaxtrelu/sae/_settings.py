"""What a run is: its settings, the part of them that its step is compiled for, its identity."""

import dataclasses
import functools
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxtrelu.sae import _losses as losses
from jaxtrelu.sae._controller import L0Controller, l0_target_controller
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._recipes import Recipe, gemma_scope, plain
from jaxtrelu.sae._rows import Rows
from jaxtrelu.sparse._block import CROSSOVER
from jaxtrelu.sparse._screen import Precision

_LISTED = 32  # open features, at least, for which lists are made without a target


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run: its size, its length and its recipe.

    Args:
      features: m.
      steps: number of optimiser steps.
      recipe: a recipe; its batch size counts.
      target_l0: mean number of open features to steer λ to; None: λ follows the recipe. The target
        itself falls geometrically to this, from half of all features, over the steps in which the
        recipe ramps λ up: features that are closed before they mean anything stay dead. With
        `steer_from` in the recipe λ ramps up first, and is then steered to this. With the penalty
        "quadratic_l0" λ is not steered and follows the recipe: the target is the penalty's.
      seed: of the initial weights. (The rows have one of their own.)
      log_every: steps between two rows of the history.
      sparse: whether to use `jaxtrelu.sparse_mlp` where it pays: the same run to rounding, in down
        to half the time for wide dictionaries (docs/sparse.md). Not where the recipe needs the
        dense latent, nor where `target_l0` (without one: 32) is more than one feature in 32, the
        share for which lists are made.
      screen: how the first product is screened where zeros are skipped, "int8" (or True) or
        "bfloat16", as in `jaxtrelu.sparse_mlp`: the same run to rounding; whether it is a faster
        one depends on the processor (docs/screening.md). None: not at all.
      skip: whether a transcoder has a skip connection, too, which adds x @ W_skip to its output,
        starts at 0 and learns with the rest.
    """

    features: int
    steps: int
    recipe: Recipe = dataclasses.field(default_factory=gemma_scope)
    target_l0: float | None = None
    seed: int = 0
    log_every: int = 50
    sparse: bool = True
    screen: Precision | bool | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        for name, least in (("features", 1), ("steps", 1), ("log_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(
                    f"`{name}` should be a whole number ≥ {least}, but is {value!r:.80}."
                )
            object.__setattr__(self, name, plain(value))
        for name in ("sparse", "skip"):
            object.__setattr__(self, name, flag(getattr(self, name), name))
        if not isinstance(self.recipe, Recipe):
            raise TypeError(
                "`recipe` should be a recipe, such as jaxtrelu.sae.gemma_scope(), but is "
                f"{self.recipe!r}."
            )
        no_number = isinstance(self.target_l0, bool) or not isinstance(self.target_l0, Real)
        if self.target_l0 is not None and no_number:
            several = isinstance(self.target_l0, Sequence | np.ndarray)
            raise TypeError(
                f"`target_l0` should be one number or None, but is {self.target_l0!r:.80}."
                f"{' For several use jaxtrelu.sae.sweep.' if several else ''}"
            )
        object.__setattr__(self, "target_l0", plain(self.target_l0))
        if self.target_l0 is not None and not 0 < self.target_l0 < self.features:
            raise ValueError(
                f"`target_l0` should be between 0 and the number of features ({self.features}), "
                f"but is {self.target_l0!r}."
            )
        if self.recipe.penalty == "quadratic_l0" and self.target_l0 is None:
            raise ValueError(
                f"the penalty of the recipe {self.recipe.name!r} is about a target: pass a "
                "`target_l0`."
            )
        if self.recipe.steer_from and self.target_l0 is None:
            raise ValueError(
                "`steer_from` of a recipe is for runs that are steered to a target, and this one "
                "has none: pass a `target_l0`, or leave it out."
            )
        if isinstance(self.screen, bool | np.bool_):
            object.__setattr__(self, "screen", "int8" if self.screen else None)
        known_name = isinstance(self.screen, str) and self.screen in get_args(Precision)
        if self.screen is not None and not known_name:
            known = " or ".join(map(repr, get_args(Precision)))
            raise ValueError(f"`screen` should be {known}, or a bool, but is {self.screen!r}.")
        if self.screen is not None and not self.visits_entries_only():
            raise ValueError(
                "`screen` is for runs that skip the zeros, and this one takes dense products: "
                f"{self._why_dense()}. Leave it out."
            )

    def _why_dense(self) -> str:
        """Why the run does not skip the zeros."""
        if not self.sparse:
            return "`sparse` is False"
        if not losses.visits_entries_only(self.recipe):
            return f"the recipe {self.recipe.name!r} needs the dense latent"
        few = f"more than one in {round(1 / CROSSOVER)} of {self.features}"
        if self.target_l0 is None:
            return (
                f"without a `target_l0`, {self._wanted():g} open features are reckoned with, {few}"
            )
        return f"{self._wanted():g} open features are {few}"

    def _wanted(self) -> float:
        # Without a target nobody knows how many will be open; in a small latent lists cannot pay.
        return _LISTED if self.target_l0 is None else self.target_l0

    def visits_entries_only(self) -> bool:
        """Whether the run skips the zeros."""
        few = self._wanted() <= self.features * CROSSOVER
        return self.sparse and few and losses.visits_entries_only(self.recipe)

    def controller(self) -> L0Controller | None:
        """What steers λ, if anything does."""
        if self.target_l0 is None:
            return None
        return steering(program_of(self), self.target_l0, self.recipe.coefficient)


class Program(NamedTuple):
    """What the program of a step depends on: runs that agree in it compile it once."""

    recipe: Recipe
    """Without what no step reads: `UNREAD`."""
    features: int
    steps: int
    sparse: bool
    """Whether the zeros are skipped."""
    screen: Precision | bool | None


# What of a recipe no step reads: the start, the data and revival have it, or, of λ, an operand.
UNREAD: dict[str, Any] = {
    "name": "", "initial_threshold": 0.0, "input_scaling": 1.0, "initialisation": "tied_unit",
    "initial_norm": 1.0, "coefficient": 1.0, "batch_size": 1, "resample_every": 0.0,
    "resample_until": 1.0, "resample_from": "examples",
}  # fmt: skip


@functools.lru_cache(maxsize=128)
def program_of(settings: Settings) -> Program:
    """The part of the settings that a step is compiled for."""
    recipe = dataclasses.replace(settings.recipe, **UNREAD)
    sparse = settings.visits_entries_only()
    return Program(recipe, settings.features, settings.steps, sparse, settings.screen)


def steering(program: Program, target: Array | float, first: float = 1.0) -> L0Controller | None:
    """What steers λ from its first value to a target, which may be traced; None where nothing does.

    Only the controller's first state depends on the first value.
    """
    recipe = program.recipe
    if recipe.penalty == "quadratic_l0":
        return None
    half, ramp = program.features / 2, recipe.warmup_steps(program.steps)

    def path(updates: Array) -> Array:
        if not ramp or recipe.steer_from:
            return jnp.asarray(target, jnp.float32)
        ratio = jnp.minimum(target / half, 1.0)
        return target / ratio * ratio ** jnp.minimum(updates / ramp, 1.0)

    return l0_target_controller(path, initial_coefficient=first)


def flag(value: object, name: str) -> bool:
    """A truth value, which a user passes under that name.

    Raises:
      TypeError: it is none.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    shape = getattr(value, "shape", None)  # an array would fill the screen
    found = f"{value!r:.80}" if shape is None else f"an array of shape {shape}"
    raise TypeError(f"`{name}` should be True or False, but is {found}.")


class Asked(NamedTuple):
    """What may differ between runs that are trained at once."""

    target: Array | float | None
    """The L0 to reach, if any."""
    coefficient: Array | float
    """λ where it is not steered; where it is, the first one."""


def asked(settings: Settings) -> Asked:
    """What the settings ask for."""
    target = None if settings.target_l0 is None else float(settings.target_l0)
    return Asked(target, float(settings.recipe.coefficient))


def identity_of(settings: Settings, rows: Rows, fingerprint: str) -> dict[str, str]:
    """What has to agree between a checkpoint and the run that resumes from it."""
    # Checkpoints from before these were settings go on without.
    later = {"screen": None, "skip": False, "recipe.initial_norm": 1.0, "recipe.steer_from": 0.0}
    values = {name: value for name, value in vars(settings).items() if name != "recipe"}
    values |= {f"recipe.{name}": value for name, value in vars(settings.recipe).items()}
    own = {k: repr(v) for k, v in values.items() if k not in later or v != later[k]}
    data = {"dimension": repr(rows.dimension), "data": fingerprint, "order": rows.order}
    if isinstance(rows, Pairs):
        data["output dimension"] = repr(rows.output_dimension)
    aside = {"rows kept aside": repr(len(rows) - rows.training_rows)}
    return {**own, **data, **aside, "data seed": repr(rows.seed)}
