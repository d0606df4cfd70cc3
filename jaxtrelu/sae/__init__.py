"""Sparse autoencoders with JumpReLU, free of any layer library: losses, recipes, data, training.

`SparseAutoencoder` is the same as a Flax module. Needs optax; the module needs Flax, checkpoints
need orbax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxtrelu.sae._controller import ControllerState, L0Controller, l0_target_controller
from jaxtrelu.sae._diagnostics import Diagnostics, diagnostics
from jaxtrelu.sae._losses import (
    Terms,
    l0_penalty,
    loss,
    pre_activation_penalty,
    pre_activations,
    reconstruct,
    tanh_penalty,
)
from jaxtrelu.sae._patches import Patches, image_patches
from jaxtrelu.sae._planted import PlantedScores, PlantedWorld, planted_scores
from jaxtrelu.sae._recipes import Recipe, anthropic_2025, gemma_scope, short_run
from jaxtrelu.sae._rows import Rows, Statistics, open_rows
from jaxtrelu.sae._training import (
    Result,
    Settings,
    TrainState,
    initial_state,
    train,
    train_step,
)
from jaxtrelu.sae._weights import (
    Weights,
    constrained,
    constrained_gradient,
    initial_weights,
    input_scale,
    project_out,
    unit_rows,
)

if TYPE_CHECKING:
    from jaxtrelu.sae._module import InputScale, SparseAutoencoder

__all__ = [
    "ControllerState",
    "Diagnostics",
    "InputScale",
    "L0Controller",
    "Patches",
    "PlantedScores",
    "PlantedWorld",
    "Recipe",
    "Result",
    "Rows",
    "Settings",
    "SparseAutoencoder",
    "Statistics",
    "Terms",
    "TrainState",
    "Weights",
    "anthropic_2025",
    "constrained",
    "constrained_gradient",
    "diagnostics",
    "gemma_scope",
    "image_patches",
    "initial_state",
    "initial_weights",
    "input_scale",
    "l0_penalty",
    "l0_target_controller",
    "loss",
    "open_rows",
    "planted_scores",
    "pre_activation_penalty",
    "pre_activations",
    "project_out",
    "reconstruct",
    "short_run",
    "tanh_penalty",
    "train",
    "train_step",
    "unit_rows",
]


def __getattr__(name: str) -> Any:
    # These need Flax, and are imported when first used.
    if name in ("InputScale", "SparseAutoencoder"):
        return getattr(importlib.import_module("jaxtrelu.sae._module"), name)
    raise AttributeError(f"module 'jaxtrelu.sae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
