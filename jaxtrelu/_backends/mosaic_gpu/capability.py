"""The compute capability of the GPU that Mosaic GPU compiles for, and what needs which."""

import jax
from jax.extend import backend

#: From JAX 0.12 on Mosaic GPU compiles for 8.x what uses no TMA; before, LLVM ends the process over
#: an instruction that Mosaic adds to every kernel (elect.sync).
LEAST = (8, 0) if jax.__version_info__ >= (0, 12) else (9, 0)


def found() -> tuple[int, ...] | None:
    """As (major, minor); None without a GPU, as for an export, where Mosaic takes 9.0."""
    name = str(getattr(backend.get_default_device(), "compute_capability", ""))
    parts = name.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else None


def has_tma() -> bool:
    """Whether blocks are copied by the tensor memory accelerator, as from 9.0 on."""
    capability = found()
    return capability is None or capability >= (9, 0)


def refusal(least: tuple[int, int], below: int | None, why: str) -> str | None:
    """Why a kernel that needs capability `least`, and one below `below`, cannot run here."""
    capability = found()
    if capability is None or (capability >= least and (below is None or capability[0] < below)):
        return None
    needed = ".".join(map(str, least)) + (" or more" if below is None else f" to {below - 1}.x")
    given = ".".join(map(str, capability))
    return f"{why} compute capability {needed}, and this GPU has {given}"
