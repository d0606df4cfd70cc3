"""Sparse autoencoders with JumpReLU, free of any layer library: losses, recipes, data, training.

`jaxtrelu.nnx.SparseAutoencoder` is the same as a Flax module. Needs optax; checkpoints need orbax.
"""

from jaxtrelu.sae.controller import ControllerState, L0Controller, l0_target_controller
from jaxtrelu.sae.diagnostics import Diagnostics, diagnostics
from jaxtrelu.sae.losses import (
    Terms,
    l0_penalty,
    loss,
    pre_activation_penalty,
    pre_activations,
    reconstruct,
    tanh_penalty,
)
from jaxtrelu.sae.patches import Patches, image_patches
from jaxtrelu.sae.planted import PlantedScores, PlantedWorld, planted_scores
from jaxtrelu.sae.recipes import Recipe, anthropic_2025, gemma_scope, short_run
from jaxtrelu.sae.rows import Rows, Statistics, open_rows
from jaxtrelu.sae.training import (
    Result,
    Settings,
    TrainState,
    initial_state,
    train,
    train_step,
)
from jaxtrelu.sae.weights import (
    Weights,
    constrained,
    constrained_gradient,
    initial_weights,
    input_scale,
    project_out,
    unit_rows,
)

__all__ = [
    "ControllerState",
    "Diagnostics",
    "L0Controller",
    "Patches",
    "PlantedScores",
    "PlantedWorld",
    "Recipe",
    "Result",
    "Rows",
    "Settings",
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
