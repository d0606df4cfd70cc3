"""`jaxtrelu info`: versions, devices, and which lowering each platform gets."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "jaxtrelu", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint",
    "scikit-learn", "matplotlib", "rich",
)  # fmt: skip
# The custom call that a kernel becomes, and what the kernel is called.
_KERNELS = {"tpu_custom_call": "Mosaic TPU", "mosaic_gpu": "Mosaic GPU"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command."""
    subparsers.add_parser(
        "info",
        help="versions, devices, and which lowering each platform gets",
        description="Prints what is installed, which devices JAX sees, and how the operation is "
        "lowered on each platform. Starts JAX's back ends; needs no extra.",
    )


def run(args: argparse.Namespace) -> int:
    """Prints one section after the other."""
    del args
    _section("versions", [("python", platform.python_version()), *_versions()])
    _section("devices", _devices())
    _section("lowering of float32 (1024, 1024)", _lowerings())
    _section("process", [("GLIBC_TUNABLES", os.environ.get("GLIBC_TUNABLES", "not set"))])
    return 0


def _section(title: str, entries: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in entries)
    print(title)
    for name, value in entries:
        print(f"  {name:<{width}}  {value}")


def _versions() -> list[tuple[str, str]]:
    entries = []
    for package in _PACKAGES:
        try:
            entries.append((package, version(package)))
        except PackageNotFoundError:
            entries.append((package, "not installed"))
    return entries


def _devices() -> list[tuple[str, str]]:
    import jax

    return [(f"{device.platform}:{device.id}", device.device_kind) for device in jax.devices()]


def _lowerings() -> list[tuple[str, str]]:
    """What each platform gets, found by lowering for it. That needs no such device."""
    import jax

    from jaxtrelu import thresholded_relu
    from jaxtrelu._primitive.lowering import BACK_ENDS, PLATFORMS

    x = jax.ShapeDtypeStruct((1024, 1024), "float32")
    programs = {
        "values": thresholded_relu,
        "gradient": jax.grad(lambda x: thresholded_relu(x).sum()),
    }
    entries = []
    for platform_name in PLATFORMS:
        words = []
        for what, function in programs.items():
            lowered = jax.jit(function).trace(x).lower(lowering_platforms=(platform_name,))
            found = [name for target, name in _KERNELS.items() if target in lowered.as_text()]
            words.append(f"{what} by {' and '.join(found) or 'XLA'}")
        asked = [b.name for b in BACK_ENDS.values() if b.platform == platform_name]
        words += [f"implementation={name!r} on request" for name in asked]
        entries.append((platform_name, ", ".join(words)))
    return entries
