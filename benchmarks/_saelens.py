"""SAELens's own trainer, on batches that are handed to it, and what it trained as plain arrays."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import numpy as np

# What sae-lens imports for language models alone, gigabytes of it: not needed for arrays.
_FOR_MODELS = (
    "babe", "datasets", "dotenv", "huggingface_hub", "nltk", "pandas", "plotly", "simple_parsing",
    "tenacity", "transformer_lens", "transformers", "wandb", "zstandard",
)  # fmt: skip


class _StandIn(types.ModuleType):
    """A module without content, for one that is imported and not used."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("HookPoint", "HookedRootModule"):
            import torch

            # A point is where hooks hang, of which there are none; a root keeps a list of them.
            base = torch.nn.Identity if name == "HookPoint" else torch.nn.Module
            return type(name, (base,), {"setup": lambda self: None})
        return MagicMock()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, absent: set[str]):
        self.absent = absent

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] in self.absent:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> _StandIn:
        return _StandIn(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


def version() -> str:
    """The installed version of sae-lens; stand-ins replace what it does not need. ImportError."""
    absent = {name for name in _FOR_MODELS if importlib.util.find_spec(name) is None}
    if absent and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder(absent))
    import sae_lens

    return sae_lens.__version__


def trained(
    batches: Iterator[np.ndarray],
    *,
    dimension: int,
    features: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    decay: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> dict[str, np.ndarray]:
    """A JumpReLU autoencoder by SAELens: `JumpReLUTrainingSAE` in `SAETrainer`, on the CPU.

    Args:
      batches: of float32, (batch_size, dimension); those of an estimate of norms come first, where
        `settings` ask for one.
      dimension: d.
      features: m.
      steps: number of optimiser steps.
      batch_size: examples in a step.
      learning_rate: of Adam(.9, .999).
      decay: the last fraction of the run, in which the rate falls linearly to 0.
      seed: of the first weights.
      **settings: of `JumpReLUTrainingSAEConfig`.

    Returns:
      The parameters by the names of `sae.Weights`, for unscaled inputs: decoder norms, which are
      free there, and the subtraction of the decoder's bias from inputs are folded.
    """
    version()
    import torch
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, LoggingConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    config = JumpReLUTrainingSAEConfig(d_in=dimension, d_sae=features, **settings)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=steps * batch_size,
            device="cpu",
            autocast=False,
            lr=learning_rate,
            lr_end=0.0 if decay else learning_rate,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            lr_decay_steps=int(decay * steps),
            adam_beta1=0.9,
            adam_beta2=0.999,
            n_restart_cycles=1,
            train_batch_size_samples=batch_size,
            dead_feature_window=1000,
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=10,
        ),
        sae=JumpReLUTrainingSAE(config),
        data_provider=map(torch.from_numpy, batches),
    )
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        model = trainer.fit()
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    norms = np.linalg.norm(state["W_dec"], axis=1)
    encoder, bias = (state["W_enc"] * norms).T, state["b_enc"] * norms
    if config.apply_b_dec_to_input:
        bias = bias - encoder @ state["b_dec"]
    return {
        "encoder": encoder,
        "encoder_bias": bias,
        "threshold": state["threshold"] * norms,
        "decoder": state["W_dec"] / norms[:, None],
        "decoder_bias": state["b_dec"],
    }
