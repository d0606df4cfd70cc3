"""Natural-image patches from the two photographs that ship with scikit-learn, whitened."""

from typing import NamedTuple

import numpy as np


class Patches(NamedTuple):
    """Whitened patches, and the way back to pixels."""

    rows: np.ndarray
    """(count, size²), float32: whitened patches."""
    size: int
    """Side of a patch, in pixels."""
    unwhiten: np.ndarray
    """(size², size²), float32: `rows @ unwhiten` are the patches, their mean grey removed."""
    kept: int
    """Number of principal components that were kept."""


def image_patches(
    count: int = 100_000, size: int = 12, *, kept_variance: float = 0.95, seed: int = 0
) -> Patches:
    """Random patches of `sklearn.datasets.load_sample_images()`, grey, whitened.

    Grey is the Rec. 709 luma of the stored values, scaled to [0, 1]. Of each patch the mean is
    removed; patches so flat that their standard deviation is below 0.01 are drawn again. Whitening
    (ZCA): with the covariance C = U diag(v) Uᵀ of the patches, rows are multiplied by
    U diag(v^−½) Uᵀ over the largest components that together carry `kept_variance` of the variance;
    the others, which are noise and traces of JPEG, are set to 0. A whitened row has a mean squared
    norm equal to the number of components kept.

    Args:
      count: number of patches.
      size: side of a patch, in pixels.
      kept_variance: share of the variance that is kept, in (0, 1].
      seed: of the draw.

    Returns:
      `Patches`.

    Raises:
      ValueError: an argument is out of its range; the message names it.
    """
    if not 2 <= size <= 64:
        raise ValueError(f"`size` should be between 2 and 64 pixels, but is {size!r}.")
    if count < 2 * size * size:
        raise ValueError(
            f"`count` should be at least {2 * size * size} for patches of {size} x {size} pixels "
            f"(their covariance is estimated from them), but is {count!r}."
        )
    if not 0 < kept_variance <= 1:
        raise ValueError(f"`kept_variance` should be in (0, 1], but is {kept_variance!r}.")
    raw = _draw(_grey_photographs(), count, size, np.random.default_rng([seed, size, count]))
    variance, basis = np.linalg.eigh(raw.T.astype(np.float64) @ raw / count)
    variance, basis = variance[::-1], basis[:, ::-1]
    shares = np.cumsum(variance) / variance.sum()
    # Never the constant patch, whose variance is 0 since the mean was removed.
    kept = min(int(np.searchsorted(shares, kept_variance)) + 1, size * size - 1)
    basis, deviation = basis[:, :kept], np.sqrt(variance[:kept])
    whiten = ((basis / deviation) @ basis.T).astype(np.float32)
    unwhiten = ((basis * deviation) @ basis.T).astype(np.float32)
    return Patches(raw @ whiten, size, unwhiten, kept)


def _grey_photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    luma = np.array([0.2126, 0.7152, 0.0722], np.float32)
    return [(image / np.float32(255)) @ luma for image in load_sample_images().images]


def _draw(images: list[np.ndarray], count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(count, size²) patches at random places, mean removed, none of them flat."""
    views = [np.lib.stride_tricks.sliding_window_view(image, (size, size)) for image in images]
    found: list[np.ndarray] = []
    missing = count
    while missing:
        for number, view in enumerate(views):
            share = missing // len(views) + (number < missing % len(views))
            rows = rng.integers(view.shape[0], size=share)
            columns = rng.integers(view.shape[1], size=share)
            patches = view[rows, columns].reshape(share, size * size)
            patches = patches - patches.mean(axis=1, keepdims=True)
            found.append(patches[patches.std(axis=1) > 0.01])
        missing = count - sum(map(len, found))
    return np.concatenate(found)
