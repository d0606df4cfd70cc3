"""`jaxtrelu info`: versions, devices, and which lowering each platform gets."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "jaxtrelu", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint",
    "scikit-learn", "matplotlib", "rich",
)  # fmt: skip
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def add_parser(subparsers) -> None:
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
    _section("lowering", _lowerings())
    _section("process", [("GLIBC_TUNABLES", os.environ.get("GLIBC_TUNABLES", "not set"))])
    return 0


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def _versions() -> list[tuple[str, str]]:
    rows = []
    for package in _PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows


def _devices() -> list[tuple[str, str]]:
    import jax

    return [(f"{device.platform}:{device.id}", device.device_kind) for device in jax.devices()]


def _lowerings() -> list[tuple[str, str]]:
    return [(platform, "XLA") for platform in _PLATFORMS]
