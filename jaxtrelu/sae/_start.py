"""A model as the start of a run: the same function, by weights in the run's units."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from jaxtrelu.sae._model import Autoencoder, check_targets, folded, in_numpy, in_one_scale
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._recipes import Recipe
from jaxtrelu.sae._rows import Rows
from jaxtrelu.sae._weights import Weights


class Start(NamedTuple):
    """Weights for inputs multiplied with `scale`, whose outputs are divided by `output_scale`."""

    weights: Weights
    scale: float
    output_scale: float
    skip: np.ndarray | None = None
    """(d, d_out), from inputs to outputs in the user's units, if any."""

    @property
    def features(self) -> int:
        """m."""
        return self.weights.encoder.shape[0]

    def fingerprint(self) -> str:
        """Another one for other weights or another scale."""
        one = self.scale == self.output_scale
        scales = self.scale if one else (self.scale, self.output_scale)
        found = hashlib.sha256(repr(scales).encode())
        for value in self.weights:
            found.update(np.ascontiguousarray(value).tobytes())
        if self.skip is not None:
            found.update(np.ascontiguousarray(self.skip).tobytes())
        return found.hexdigest()[:16]

    def scaled(self, scale: float, output_scale: float, *, unit_norm: bool) -> Weights:
        """The same function for inputs multiplied with `scale`, and outputs divided by another.

        JumpReLU(c z) with a threshold of c θ is c times JumpReLU(z) with θ, for any c > 0. So what
        is added to features and outputs, and thresholds, are multiplied with the ratio of scales;
        and with `unit_norm` a decoder's row of norm n becomes one of norm 1, and all of its feature
        n times as large. In float32.
        """
        w, ratio = self.weights, scale / self.scale
        ratio_out = output_scale / self.output_scale
        decoder = w.decoder * (ratio_out / ratio)
        size = np.ones(self.features)
        if unit_norm:
            norm = np.linalg.norm(decoder, axis=1)
            size = np.where(norm > 0, norm, 1)
        found = Weights(
            w.encoder * size[:, None],
            w.encoder_bias * size * ratio,
            w.threshold * size * ratio,
            decoder / size[:, None],
            w.decoder_bias * ratio_out,
        )
        return in_numpy(found, np.float32)

    def scaled_skip(self, scale: float, output_scale: float) -> np.ndarray | None:
        """The skip connection between the same. In float32."""
        if self.skip is None:
            return None
        return (self.skip * (output_scale / scale)).astype(np.float32)


def recipe_of(model: Autoencoder) -> Recipe | None:
    """How the model was trained, from the λ that the training ended with; None: it does not say.

    λ neither ramps up again nor waits to be steered: a model that is trained would first unlearn
    its sparsity. Nor are features revived, whose period, a fraction of a run that may be short,
    would take those that are only rare for silent ones.
    """
    last = model.about.get("training", {}).get("coefficient")
    if model.recipe is None or last is None:
        return model.recipe
    return dataclasses.replace(
        model.recipe, coefficient=last, coefficient_warmup=0, steer_from=0.0, resample_every=0.0
    )


def start_of(model: Autoencoder, rows: Rows) -> Start:
    """What a run on those rows begins with, in float64.

    Raises:
      TypeError: that is no model.
      ValueError: a kind of model that is not trained here, or one of other dimensions.
    """
    if not isinstance(model, Autoencoder):
        raise TypeError(
            f"`start` should be an Autoencoder, but is {type(model).__name__}. Pass what "
            "jaxtrelu.sae.load(path) returns."
        )
    if model.normalisation != "none":
        raise ValueError(
            f"`start` normalises each row ({model.normalisation}): such models are not trained "
            "here. Pass one that does not."
        )
    if model.dimension != rows.dimension:
        raise ValueError(
            f"`start` is of dimension {model.dimension}, but the rows are of {rows.dimension}."
        )
    if model.output_dimension != rows.output_dimension:
        raise ValueError(
            f"`start` has outputs of dimension {model.output_dimension}, but what it should make "
            f"of the rows is of {rows.output_dimension}: a transcoder is trained on with "
            "`targets`, an autoencoder without."
        )
    if isinstance(rows, Pairs):
        if model.subtract_decoder_bias:
            model = folded(model)
        scales = float(model.input_scale), float(model.output_scale)
        skip = None if model.skip is None else np.asarray(model.skip, np.float64)
        return Start(in_numpy(model.weights, np.float64), *scales, skip)
    check_targets(model, None)
    weights, scale = in_one_scale(model)
    return Start(in_numpy(weights, np.float64), scale, scale)
