#!/usr/bin/env python
"""An autoencoder of SAELens, trained further here to the sparsity asked for, and taken back.

SAELens trains a small JumpReLU autoencoder and writes it; here it is read, evaluated, and trained
further while λ is steered until as many features are open as wanted; then it is written, and
SAELens reads it: the same features, to rounding. With a folder of yours, begin at `sae.load`.

Needs: pip install 'jaxtrelu[flax]' optax sae-lens. Half a minute on a laptop.

    python examples/from_saelens_and_back.py
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from sae_lens.saes import SAE, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from jaxtrelu import sae

INPUTS, FEATURES, BATCH = 64, 256, 512
WANTED = 16.0  # open features, on average


def activations(rows=20_000):
    """What stands for activations of a language model: sparse sums of directions, and noise."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(FEATURES, INPUTS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    present = rng.random((rows, FEATURES)) < 8 / FEATURES
    strengths = rng.exponential(size=(rows, FEATURES)) * present
    return (strengths @ directions + rng.normal(scale=0.05, size=(rows, INPUTS))).astype(np.float32)


def train_there(x, folder, steps=500):
    """What stands for your autoencoder: SAELens' own module, a few steps, its own file."""
    torch.manual_seed(0)
    config = JumpReLUTrainingSAEConfig(
        d_in=INPUTS, d_sae=FEATURES, jumprelu_init_threshold=0.1, jumprelu_bandwidth=0.1
    )
    module = JumpReLUTrainingSAE(config)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    rows = torch.tensor(x)
    for step in range(steps):
        batch = rows[torch.randint(0, len(rows), (BATCH,))]
        done = module.training_forward_pass(TrainStepInput(batch, {"l0": 0.02}, None, step, False))
        optimizer.zero_grad()
        done.loss.backward()
        optimizer.step()
    module.save_inference_model(folder)


def line(name, figures):
    print(f"{name}: L0 {figures.l0:.1f}, explained variance {figures.explained_variance:.3f}")


def main():
    folder = Path(tempfile.mkdtemp(prefix="jaxtrelu-"))
    x = activations()
    train, held_out = x[:-2000], x[-2000:]
    train_there(train, folder / "there")

    model = sae.load(folder / "there")
    line("from SAELens  ", sae.evaluate(model, held_out))
    model = sae.train(train, start=model, l0=WANTED, steps=3000)
    figures = sae.evaluate(model, held_out)
    line("trained further", figures)
    assert abs(figures.l0 / WANTED - 1) < 0.15

    sae.save(model, folder / "back", format="saelens")
    theirs = SAE.load_from_disk(folder / "back")
    with torch.no_grad():
        features = theirs.encode(torch.tensor(held_out)).numpy()
    ours = np.asarray(jax.device_get(model.encode(held_out)))
    differing = int(((features > 0) != (ours > 0)).sum())
    print(f"{folder / 'back'}, read by SAELens: {differing} of {ours.size:,} gates differ,")
    print(f"the largest difference of a feature is {np.abs(features - ours).max():.1g}")
    assert differing <= ours.size // 100_000


if __name__ == "__main__":
    main()
