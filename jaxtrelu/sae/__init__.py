"""Sparse autoencoders with JumpReLU: train, save, load, encode, evaluate.

    model = sae.train(x, features=4096, l0=32)
    sae.save(model, "model.safetensors")
    features = sae.load("model.safetensors").encode(x)

Free of any layer library; `SparseAutoencoder` is the same as a Flax module. Needs optax; the module
needs Flax. Below `train` lie `Rows`, `Settings` and `run`, and below these the losses, recipes and
weights as plain functions.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxtrelu.sae._controller import ControllerState, L0Controller, l0_target_controller
from jaxtrelu.sae._diagnostics import Diagnostics, diagnostics
from jaxtrelu.sae._evaluation import Dead, Evaluation, dead_features, evaluate
from jaxtrelu.sae._losses import (
    Terms,
    l0_penalty,
    loss,
    pre_activation_penalty,
    pre_activations,
    reconstruct,
    tanh_penalty,
)
from jaxtrelu.sae._model import Autoencoder, OpenFeatures, TopFeatures, TopRows
from jaxtrelu.sae._patches import Patches, image_patches
from jaxtrelu.sae._planted import PlantedScores, PlantedWorld, planted_scores
from jaxtrelu.sae._recipes import (
    Recipe,
    anthropic_2025,
    frequent_resampling,
    gemma_scope,
    gemma_scope_2,
    short_run,
)
from jaxtrelu.sae._report._page import report
from jaxtrelu.sae._result import Result
from jaxtrelu.sae._rows import Rows, Statistics, open_rows
from jaxtrelu.sae._settings import Settings
from jaxtrelu.sae._step import TrainState, initial_state, train_step
from jaxtrelu.sae._store import load, save
from jaxtrelu.sae._sweep import Sweep, sweep
from jaxtrelu.sae._synthetic import SyntheticScores, SyntheticWorld, synthetic_scores
from jaxtrelu.sae._train import held_out, train
from jaxtrelu.sae._training import run
from jaxtrelu.sae._weights import (
    Weights,
    constrained,
    constrained_gradient,
    initial_weights,
    input_scale,
    project_out,
    revived,
    unit_rows,
)

if TYPE_CHECKING:
    from jaxtrelu.sae._module import InputScale, SparseAutoencoder

__all__ = [
    "Autoencoder",
    "ControllerState",
    "Dead",
    "Diagnostics",
    "Evaluation",
    "InputScale",
    "L0Controller",
    "OpenFeatures",
    "Patches",
    "PlantedScores",
    "PlantedWorld",
    "Recipe",
    "Result",
    "Rows",
    "Settings",
    "SparseAutoencoder",
    "Statistics",
    "Sweep",
    "SyntheticScores",
    "SyntheticWorld",
    "Terms",
    "TopFeatures",
    "TopRows",
    "TrainState",
    "Weights",
    "anthropic_2025",
    "constrained",
    "constrained_gradient",
    "dead_features",
    "diagnostics",
    "evaluate",
    "frequent_resampling",
    "gemma_scope",
    "gemma_scope_2",
    "held_out",
    "image_patches",
    "initial_state",
    "initial_weights",
    "input_scale",
    "l0_penalty",
    "l0_target_controller",
    "load",
    "loss",
    "open_rows",
    "planted_scores",
    "pre_activation_penalty",
    "pre_activations",
    "project_out",
    "reconstruct",
    "report",
    "revived",
    "run",
    "save",
    "short_run",
    "sweep",
    "synthetic_scores",
    "tanh_penalty",
    "train",
    "train_step",
    "unit_rows",
]


if not TYPE_CHECKING:  # or a type checker takes any name for one of this module

    def __getattr__(name: str) -> Any:
        # These need Flax, and are imported when first used.
        if name in ("InputScale", "SparseAutoencoder"):
            return getattr(importlib.import_module("jaxtrelu.sae._module"), name)
        raise AttributeError(f"module 'jaxtrelu.sae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
