"""What the thresholded ReLU does to a normal distribution, and what follows: initialisation."""

from jaxtrelu.theory._initialisation import CriticalInit, critical_init, gain
from jaxtrelu.theory._maps import correlation_map, gradient_gain, smoothed, variance_map
from jaxtrelu.theory._moments import Moments, moments

__all__ = [
    "CriticalInit",
    "Moments",
    "correlation_map",
    "critical_init",
    "gain",
    "gradient_gain",
    "moments",
    "smoothed",
    "variance_map",
]
