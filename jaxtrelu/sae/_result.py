"""What a training run leaves."""

from typing import NamedTuple

import numpy as np
from jax import Array

from jaxtrelu.sae._weights import Weights


class Result(NamedTuple):
    """A trained autoencoder and how it came about."""

    weights: Weights
    """The parameters after the last step."""
    scale: float
    """Inputs are multiplied by this before the encoder sees them; part of the model."""
    history: dict[str, np.ndarray]
    """One array per column; reconstruction is the share of the variance that is lost."""
    resumed_from: int
    """The step at which an earlier run's checkpoint was taken up; 0 for a fresh start."""
    fingerprint: str
    """Of the data, targets included: a checksum of every byte."""
    output_scale: float
    """The same of what is reconstructed: `scale`, but where targets have one of their own."""
    skip: Array | None = None
    """(d, d_out): a transcoder's skip connection, of scaled inputs to scaled outputs, if any."""
