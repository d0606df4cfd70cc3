"""The autoencoder as an object: encode, decode, look at features; a pytree, free of any library.

What other libraries publish is of this form, too: inputs may be normalised row by row, the bias of
the decoder may be subtracted first, a transcoder writes to another space than it reads from, and a
skip connection may pass the input by.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxtrelu._activation import thresholded_relu
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sae._recipes import Recipe
from jaxtrelu.sae._result import Result
from jaxtrelu.sae._rows import (
    Rows,
    array_of,
    check_numbers,
    check_unmasked,
    not_finite,
    open_rows,
)
from jaxtrelu.sae._weights import Weights

Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]
_BLOCK_ENTRIES = 1 << 24  # of a latent at once: 64 MB


class OpenFeatures(NamedTuple):
    """The open features of some rows, as lists of one length: those of the fullest row.

    Example:
      >>> found = OpenFeatures(np.array([[1, 4], [2, 6]]), np.array([[.5, 2], [1, 0]]), [2, 1])
      >>> found.counts  # the second row has one open feature: 6 stands for none, of 6 features
      [2, 1]
    """

    indices: np.ndarray
    """(n, k), int32: the numbers of the open features, ascending; after the last, m."""
    values: np.ndarray
    """(n, k), float32: their values; after the last, 0."""
    counts: np.ndarray
    """(n,), int32: how many there are."""


class TopRows(NamedTuple):
    """The rows in which a feature is largest."""

    rows: np.ndarray
    """Numbers of rows, from 0, int64, largest value first; only rows in which it is open."""
    values: np.ndarray
    """The feature's values in them, float32."""


class TopFeatures(NamedTuple):
    """The open features of a row."""

    indices: np.ndarray
    """Their numbers, from 0, int32, largest value first."""
    values: np.ndarray
    """Their values, float32."""


class _Rules(NamedTuple):
    """What a compiled program depends on."""

    normalisation: Normalisation
    subtract_decoder_bias: bool
    surrogate: Surrogate | None


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
    """A sparse autoencoder or transcoder with JumpReLU: what `train` and `load` return.

    In this order: x is normalised row by row; multiplied by `input_scale`; the decoder's bias is
    subtracted, if at all; features are f = JumpReLU(x @ encoderᵀ + encoder_bias, θ); the output is
    f @ decoder + decoder_bias, divided by `output_scale`, the normalisation undone, plus x @ skip.
    A feature is open where its pre-activation is greater than θ, strictly. Everything is computed
    in float32 at least.

    It is a pytree (without `training`), so it can be passed to functions under `jax.jit`.

    Args:
      weights: the parameters; thresholds at least 0. For a transcoder the decoder's rows are of
        another length than the encoder's.
      skip: (d_in, d_out), adds x @ skip to the output; None: no skip connection.
      input_scale: what inputs are multiplied with.
      output_scale: what outputs are divided by.
      normalisation: "layer_norm" subtracts a row's mean and divides by its standard deviation
        (ddof 1) + 1e-5; "constant_norm_rescale" brings a row to norm √d. Both are undone at the
        output.
      subtract_decoder_bias: whether the encoder sees x − decoder_bias.
      recipe: how it was trained, with every setting; its surrogate gives thresholds a gradient.
        None: not known, and thresholds have none.
      about: what else is known of it, in plain values that JSON has. ``{"transcoder": True}`` says
        that it writes other rows than it reads, where its shapes do not (`is_transcoder`).
      training: the `Result` of the run that made it; None after loading.

    Raises:
      ValueError: shapes do not go together, a threshold is below 0, a scale is not above 0.

    Example:
      >>> from jaxtrelu import sae
      >>> rows = np.eye(3, 2)
      >>> weights = sae.Weights(rows, np.zeros(3), np.full(3, 0.5), rows, np.zeros(2))
      >>> model = sae.Autoencoder(weights)
      >>> model(np.array([[1.0, 0.25]])).tolist()
      [[1.0, 0.0]]
    """

    weights: Weights
    skip: Array | None = None
    input_scale: float | Array = 1.0
    output_scale: float | Array = 1.0
    normalisation: Normalisation = "none"
    subtract_decoder_bias: bool = False
    recipe: Recipe | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Result | None = None

    def __repr__(self) -> str:
        name = None if self.recipe is None else self.recipe.name
        rules = {
            "transcoder": self.is_transcoder or None,
            "recipe": name,
            "normalisation": None if self.normalisation == "none" else self.normalisation,
            "skip": None if self.skip is None else True,
        }
        said = "".join(f", {key}={value!r}" for key, value in rules.items() if value is not None)
        return f"Autoencoder({self.dimension} -> {self.features} -> {self.output_dimension}{said})"

    def __post_init__(self) -> None:
        put = partial(object.__setattr__, self)
        weights = Weights(*(jnp.asarray(value, jnp.float32) for value in self.weights))
        put("weights", weights)
        if self.skip is not None:
            put("skip", jnp.asarray(self.skip, jnp.float32))
        _check_shapes(weights, self.skip)
        if self.normalisation not in get_args(Normalisation):
            raise ValueError(
                f"`normalisation` should be one of {', '.join(get_args(Normalisation))}, but is "
                f"{self.normalisation!r}."
            )
        for name in ("input_scale", "output_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"`{name}` should be finite and greater than 0, but is {getattr(self, name)!r}."
                )
            put(name, float(getattr(self, name)))
        per_row = self.normalisation != "none"
        if (per_row or self.subtract_decoder_bias) and self.dimension != self.output_dimension:
            raise ValueError(
                f"a transcoder from {self.dimension} to {self.output_dimension} dimensions cannot "
                "subtract the decoder's bias from its inputs, nor undo their normalisation."
            )
        if bool(jnp.any(weights.threshold < 0)):
            raise ValueError("thresholds should be at least 0, and some are below.")

    @property
    def features(self) -> int:
        """m, the number of features."""
        return self.weights.encoder.shape[0]

    @property
    def dimension(self) -> int:
        """d of the inputs."""
        return self.weights.encoder.shape[1]

    @property
    def output_dimension(self) -> int:
        """d of the outputs: that of the inputs, but for a transcoder."""
        return self.weights.decoder.shape[1]

    @property
    def threshold(self) -> Array:
        """θ, (m,): what pre-activations are compared with."""
        return self.weights.threshold

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes other rows than it reads: the targets that it was trained with.

        Told by another width, by a skip connection, by its training, or by the file it is from.
        """
        return (
            self.dimension != self.output_dimension
            or self.skip is not None
            or "targets" in self.about.get("training", {})
            or bool(self.about.get("transcoder"))
        )

    @property
    def needs_inputs(self) -> bool:
        """Whether the output depends on x otherwise than through the features."""
        return self.skip is not None or self.normalisation != "none"

    def pre_activations(self, x: ArrayLike) -> Array:
        """What thresholds are compared with. NaN in, NaN out.

        Args:
          x: (..., d), in the user's units.

        Returns:
          π, (..., m), float32.

        Raises:
          ValueError: x does not have d columns.
        """
        return _pre_activations(self, self._checked(x))

    def encode(self, x: ArrayLike) -> Array:
        """The features: π where π > θ, else 0. NaN in, NaN out.

        A row that holds NaN has NaN in all features: values are not looked at here, so that this
        works inside of `jax.jit`. `encode_sparse` refuses such rows.

        Args:
          x: (..., d), in the user's units.

        Returns:
          (..., m), float32.

        Raises:
          TypeError: x is the path of a file.
          ValueError: x does not have d columns.
        """
        return _encode(self, self._checked(x))

    def encode_sparse(self, x: "ArrayLike | str | os.PathLike | Rows") -> OpenFeatures:
        """The open features of each row, as indices and values; not inside jit.

        Args:
          x: (n, d), or the path of a `.npy` file of such a matrix. Rows are taken in blocks, so the
            dense features of all of them are never in memory.

        Returns:
          `OpenFeatures`, in NumPy.

        Raises:
          ValueError: x is no matrix of d columns, or rows are not finite (says which).
        """
        parts = []
        for _, block in self._blocks(x):
            dense = np.asarray(self.encode(block))
            rows, indices = np.nonzero(dense)
            parts.append((np.bincount(rows, minlength=len(dense)), indices, dense[rows, indices]))
        counts, indices, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        width = int(counts.max(initial=0))
        place = np.arange(width) < counts[:, None]
        padded = np.full(place.shape, self.features, np.int32), np.zeros(place.shape, np.float32)
        padded[0][place], padded[1][place] = indices, values
        return OpenFeatures(*padded, counts.astype(np.int32))

    def decode(self, features: ArrayLike | OpenFeatures, x: ArrayLike | None = None) -> Array:
        """The output that features stand for.

        Args:
          features: (..., m), as `encode` returns them, or `OpenFeatures`.
          x: the inputs, (..., d). Only for models whose output depends on them otherwise, too: by a
            skip connection or a normalisation row by row (`needs_inputs`).

        Returns:
          (..., d_out), float32, in the user's units.

        Raises:
          ValueError: shapes are wrong, or x is missing where it is needed.
        """
        if isinstance(features, OpenFeatures):
            dense = np.zeros((len(features.counts), self.features + 1), np.float32)
            np.put_along_axis(dense, features.indices, features.values, axis=1)
            features = dense[:, :-1]
        features = jnp.asarray(features)
        if features.shape[-1:] != (self.features,):
            raise ValueError(
                f"features should have {self.features} columns, but have shape {features.shape}."
            )
        if self.needs_inputs and x is None:
            raise ValueError(
                "this model's output depends on the inputs by a skip connection or a normalisation "
                "row by row: pass decode(features, x)."
            )
        # Without a need, x changes nothing.
        x = self._checked(x) if self.needs_inputs and x is not None else None
        return _decode(self, features, x)

    def __call__(self, x: ArrayLike) -> Array:
        """The reconstruction of x, or what a transcoder makes of it. NaN in, NaN out."""
        x = self._checked(x)
        return _decode(self, _encode(self, x), x if self.needs_inputs else None)

    def top_rows(
        self, x: "ArrayLike | str | os.PathLike | Rows", feature: int, count: int = 10
    ) -> TopRows:
        """The rows in which a feature is largest.

        Args:
          x: (n, d), or the path of a `.npy` file; read in blocks.
          feature: its number, from 0.
          count: how many rows at most.

        Returns:
          `TopRows`; of equal values the earlier row comes first.

        Raises:
          ValueError: there is no such feature, x is no matrix of d columns, or rows are not finite.
        """
        (found,) = self.top_rows_of(x, [feature], count)
        return found

    def top_rows_of(
        self, x: "ArrayLike | str | os.PathLike | Rows", features: Sequence[int], count: int = 10
    ) -> list[TopRows]:
        """The same of several features, in one pass over the rows.

        Args:
          x: (n, d), or the path of a `.npy` file; read in blocks.
          features: their numbers, from 0.
          count: how many rows of each at most.

        Returns:
          One `TopRows` per feature.

        Raises:
          ValueError: there is no such feature, x is no matrix of d columns, or rows are not finite.
        """
        chosen = np.asarray(features, int)
        wrong = chosen[(chosen < 0) | (chosen >= self.features)]
        if len(wrong):
            raise ValueError(
                f"there is no feature {wrong[0]}: they go from 0 to {self.features - 1}."
            )
        part = dataclasses.replace(self, weights=_some(self.weights, chosen), training=None)
        values = np.zeros((0, len(chosen)), np.float32)
        rows = np.zeros((0, len(chosen)), np.int64)
        for start, block in part._blocks(x):
            found = np.asarray(part.encode(block))
            numbers = np.broadcast_to(np.arange(start, start + len(found))[:, None], found.shape)
            values, rows = np.concatenate([values, found]), np.concatenate([rows, numbers])
            order = np.argsort(-values, axis=0, kind="stable")[:count]
            values, rows = (np.take_along_axis(a, order, 0) for a in (values, rows))
        is_open = values > 0
        return [
            TopRows(rows[is_open[:, i], i], values[is_open[:, i], i]) for i in range(len(chosen))
        ]

    def top_features(self, row: ArrayLike, count: int | None = None) -> TopFeatures:
        """The open features of a row.

        Args:
          row: (d,).
          count: how many at most; None: all.

        Returns:
          `TopFeatures`.

        Raises:
          ValueError: the row is not of length d, or not finite.
        """
        check_unmasked(row, "`row`")
        row = jnp.asarray(row)
        if row.shape not in ((self.dimension,), (1, self.dimension)):
            raise ValueError(
                f"`row` should be one row of {self.dimension} numbers, but has shape {row.shape}."
            )
        if not bool(jnp.isfinite(row).all()):
            raise ValueError("`row` holds NaN or infinity. Pass a row that is finite.")
        values = np.asarray(self.encode(row.reshape(-1)))
        order = np.argsort(-values, kind="stable")[: np.count_nonzero(values)][:count]
        return TopFeatures(order.astype(np.int32), values[order])

    def _checked(self, x: ArrayLike) -> Array:
        if isinstance(x, str | os.PathLike):
            raise TypeError(
                f"x should be an array with {self.dimension} columns, but is the path "
                f"{os.fspath(x)!r}. Pass np.load of it, or let encode_sparse, top_rows or "
                "sae.evaluate read it in blocks."
            )
        check_unmasked(x, "x")
        x = jnp.asarray(x)
        if x.shape[-1:] != (self.dimension,):
            raise ValueError(
                f"x should have {self.dimension} columns, as the model has, but has shape "
                f"{x.shape}."
            )
        return x

    def _blocks(self, x: Any) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, rows) one after the other; raises where some are not finite."""
        array = matrix(x)
        if array.ndim != 2 or array.shape[1] != self.dimension:
            raise ValueError(
                f"x should have one example per row and {self.dimension} columns, as the model "
                f"has, but has shape {array.shape}."
            )
        size = max(1, min(_BLOCK_ENTRIES // max(self.features, self.dimension), len(array)))
        for start in range(0, max(len(array), 1), size):
            block = np.asarray(array[start : start + size], np.float32)
            check_finite(x, "x", np.arange(start, start + len(block)), block)
            yield start, block


def matrix(x: Any, name: str = "x") -> Any:
    """The array behind what a user passes as rows: an array, `Rows`, or a path."""
    if x is None:
        raise TypeError(
            "there are no rows: x is None. `held_out` returns that where the model was trained on "
            "other data, or no rows were kept aside."
        )
    if isinstance(x, str | os.PathLike):
        x = open_rows(x)
    if isinstance(x, Rows):
        return x.array
    array = array_of(x, name)
    check_numbers(array, name)
    return array


def check_targets(model: Autoencoder, targets: Any) -> None:
    """Raises ValueError where a transcoder would be taken for an autoencoder."""
    if targets is None and model.is_transcoder:
        raise ValueError(
            "the model is a transcoder, which writes other rows than it reads: pass `targets`, or "
            "the rows themselves as `targets` where these are meant."
        )


def check_finite(x: Any, name: str, rows: Sequence[int] | np.ndarray, values: np.ndarray) -> None:
    """Raises where some of the values, which are of these rows of x, are not finite.

    x is what a user passes as rows; `name` is what an array without a name of its own is called.
    """
    bad = np.asarray(rows)[~np.isfinite(values).all(axis=1)].tolist()
    if bad:
        if isinstance(x, str | os.PathLike):
            x = open_rows(x)
        name = x.name if isinstance(x, Rows) else name
        raise ValueError(not_finite(name, matrix(x), bad, len(bad)))


def _flatten(model: Autoencoder) -> tuple[Any, Any]:
    children = (model.weights, model.skip, model.input_scale, model.output_scale)
    rules = (model.normalisation, model.subtract_decoder_bias, model.recipe)
    return children, (*rules, json.dumps(dict(model.about), sort_keys=True))


def _unflatten(rest: Any, children: Any) -> Autoencoder:
    # No checks: under a transformation, leaves are whatever it puts there.
    model = object.__new__(Autoencoder)
    names = [field.name for field in dataclasses.fields(Autoencoder)]
    values = (*children, *rest[:3], json.loads(rest[3]), None)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(model, name, value)
    return model


jax.tree_util.register_pytree_node(Autoencoder, _flatten, _unflatten)


def _accumulated(x: Array) -> Array:
    """In float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _parts(model: Autoencoder) -> tuple[Any, ...]:
    surrogate = None if model.recipe is None else model.recipe.surrogate
    rules = _Rules(model.normalisation, model.subtract_decoder_bias, surrogate)
    return rules, model.weights, model.skip, model.input_scale, model.output_scale


def _pre_activations(model: Autoencoder, x: Array) -> Array:
    rules, weights, _, scale, _ = _parts(model)
    return _pre_activations_of(rules, weights, scale, x)


def _encode(model: Autoencoder, x: Array) -> Array:
    rules, weights, _, scale, _ = _parts(model)
    return _encode_of(rules, weights, scale, x)


def _decode(model: Autoencoder, features: Array, x: Array | None) -> Array:
    rules, weights, skip, _, scale = _parts(model)
    return _decode_of(rules, weights, skip, scale, features, x)


# Compiled for what they depend on alone, not for a model's recipe and story.
@partial(jax.jit, static_argnums=0)
def _pre_activations_of(rules: _Rules, weights: Weights, scale: Any, x: Array) -> Array:
    x, _, _ = _normalised(rules, _accumulated(x))
    x = x * scale
    if rules.subtract_decoder_bias:
        x = x - weights.decoder_bias
    return x @ weights.encoder.astype(x.dtype).T + weights.encoder_bias


@partial(jax.jit, static_argnums=0)
def _encode_of(rules: _Rules, weights: Weights, scale: Any, x: Array) -> Array:
    pi = _pre_activations_of(rules, weights, scale, x)
    return thresholded_relu(pi, weights.threshold, variant="hard", surrogate=rules.surrogate)


@partial(jax.jit, static_argnums=0)
def _decode_of(
    rules: _Rules, weights: Weights, skip: Any, scale: Any, features: Array, x: Array | None
) -> Array:
    features = _accumulated(features)
    y = features @ weights.decoder.astype(features.dtype) + weights.decoder_bias
    y = y / scale
    if x is None:
        return y
    x = _accumulated(x)
    _, mean, spread = _normalised(rules, x)
    y = y * spread + mean
    return y if skip is None else y + x @ skip.astype(x.dtype)


def _normalised(rules: _Rules, x: Array) -> tuple[Array, Any, Any]:
    """(rows, what to add and what to multiply with to undo it at the output)."""
    if rules.normalisation == "layer_norm":
        mean = jnp.mean(x, axis=-1, keepdims=True)
        x = x - mean
        spread = jnp.std(x, axis=-1, keepdims=True, ddof=1)
        return x / (spread + 1e-5), mean, spread
    if rules.normalisation == "constant_norm_rescale":
        norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
        factor = x.shape[-1] ** 0.5 / jnp.where(norm > 0, norm, 1)
        return x * factor, 0.0, 1 / factor
    return x, 0.0, 1.0


def _some(weights: Weights, features: np.ndarray) -> Weights:
    """The weights of some features alone."""
    parts = [value[features] for value in weights[:4]]
    return Weights(*parts, weights.decoder_bias)  # type: ignore[call-arg]


def _check_shapes(weights: Weights, skip: Array | None) -> None:
    encoder, decoder = weights.encoder.shape, weights.decoder.shape
    if len(encoder) != 2 or len(decoder) != 2 or 0 in (*encoder, *decoder):
        raise ValueError(
            f"`encoder` and `decoder` should be matrices with one row per feature, but have shapes "
            f"{encoder} and {decoder}."
        )
    (m, d_in), d_out = encoder, decoder[1]
    wanted = {
        "encoder_bias": (m,), "threshold": (m,), "decoder": (m, d_out), "decoder_bias": (d_out,),
    }  # fmt: skip
    found = {name: getattr(weights, name).shape for name in wanted}
    if skip is not None:
        wanted["skip"], found["skip"] = (d_in, d_out), skip.shape
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(
                f"`{name}` should have shape {shape} beside an encoder of shape {encoder}, but has "
                f"shape {found[name]}."
            )


def in_numpy(weights: Weights, dtype: Any) -> Any:
    """The weights as NumPy arrays."""
    return jax.tree.map(lambda value: np.asarray(value, dtype), weights)


def in_one_scale(model: Autoencoder) -> tuple[Weights, float]:
    """Weights, and the one number that inputs are multiplied with and outputs divided by.

    Raises:
      ValueError: they cannot express the model.
    """
    if model.is_transcoder:
        raise ValueError(
            "a transcoder, with a skip connection or without, is no SparseAutoencoder: train it "
            "further with jaxtrelu.sae.train(x, targets=…, start=model), or take the model itself, "
            "which is a pytree, and jaxtrelu.sae.loss with its targets."
        )
    if model.needs_inputs:
        raise ValueError(
            f"a model that normalises each row ({model.normalisation}) is no SparseAutoencoder: "
            "take the model itself, which is a pytree."
        )
    scale = float(model.input_scale)
    if model.subtract_decoder_bias or scale != float(model.output_scale):
        model, scale = folded(model), 1.0
    return model.weights, scale


def folded(model: Autoencoder) -> Autoencoder:
    """The same function without scales and without subtraction; gates agree to rounding.

    Computed in float64.

    Raises:
      ValueError: the model normalises row by row, which no weights can express.
    """
    if model.normalisation != "none":
        raise ValueError(
            f"the model normalises each row ({model.normalisation}), which weights alone cannot "
            "express"
        )
    w = in_numpy(model.weights, np.float64)
    bias = w.encoder_bias
    if model.subtract_decoder_bias:
        bias = bias - w.encoder @ w.decoder_bias
    scale_in, scale_out = float(model.input_scale), float(model.output_scale)
    weights = Weights(
        w.encoder * scale_in, bias, w.threshold, w.decoder / scale_out, w.decoder_bias / scale_out
    )
    return dataclasses.replace(
        model, weights=weights, input_scale=1.0, output_scale=1.0, subtract_decoder_bias=False
    )
