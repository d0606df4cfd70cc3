"""float16 as the integers that hold its bits, for Mosaic TPU, which cannot load float16.

Its compiler (libtpu 0.0.42) answers "Invalid vector type for load" for v4, v5e and v6e; int16 it
loads and stores. Nothing here reads or makes a subnormal float32, which a TPU would take for zero.
"""

import jax
import jax.numpy as jnp
from jax import lax

INFINITY, NAN = 0x7C00, 0x7E00
LEAST_NORMAL = 0x0400


def is_half(dtype) -> bool:
    """Whether arrays of that dtype go through this module."""
    return jnp.dtype(dtype).name == "float16"


def bits_of(x: jax.Array) -> jax.Array:
    """A float16 array as int16; another one as it is."""
    return lax.bitcast_convert_type(x, jnp.int16) if is_half(x.dtype) else x


def from_bits(x: jax.Array, dtype) -> jax.Array:
    """The inverse of `bits_of`, for an array of that dtype."""
    return lax.bitcast_convert_type(x, dtype) if is_half(dtype) else x


def decode(bits: jax.Array) -> jax.Array:
    """int16 bits to float32, exactly."""
    bits = bits.astype(jnp.int32)
    magnitude = bits & 0x7FFF
    special = magnitude >= INFINITY
    bias = jnp.where(special, jnp.int32(224 << 23), jnp.int32(112 << 23))  # of the exponents
    normal = lax.bitcast_convert_type((magnitude << 13) + bias, jnp.float32)
    value = jnp.where(magnitude < LEAST_NORMAL, magnitude.astype(jnp.float32) * 2.0**-24, normal)
    return jnp.where(bits < 0, -value, value)


def encode(value: jax.Array) -> jax.Array:
    """float32 rounded to float16, ties to even, as int16 bits."""
    bits = lax.bitcast_convert_type(value, jnp.int32)
    magnitude = bits & 0x7FFFFFFF
    even = (magnitude >> 13) & 1
    normal = jnp.minimum(((magnitude + 0x0FFF + even) >> 13) - (112 << 10), INFINITY)
    # Next to a half, float32 counts in steps of 2^-24, like the subnormals of float16.
    beside_half = lax.bitcast_convert_type(magnitude, jnp.float32) + 0.5
    small = lax.bitcast_convert_type(beside_half, jnp.int32) - 0x3F000000
    half = jnp.where(magnitude < 113 << 23, small, normal)
    half = jnp.where(magnitude > 0x7F800000, NAN, half)
    return jnp.where(bits < 0, half - 0x8000, half).astype(jnp.int16)
