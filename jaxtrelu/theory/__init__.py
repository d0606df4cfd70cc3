"""What the thresholded ReLU does to a normal distribution, and what follows from that.

Moments in closed form; the maps of variance and correlation through a wide random net, and
initialisation on the edge of chaos; thresholds for a wanted share of zeros or a wanted error, from
the normal distribution and from data; the information that a layer keeps, in closed form and by a
linear probe. All are plain functions
of arrays, in float32 or float64, which broadcast; those without data are differentiable.
"""

from jaxtrelu.theory._calibration import ErrorThreshold, QuantileSketch, threshold_for_error
from jaxtrelu.theory._cutoff import gaussian_cutoff, quantile_threshold
from jaxtrelu.theory._information import Information, information, rate_at
from jaxtrelu.theory._initialisation import CriticalInit, critical_init, gain
from jaxtrelu.theory._maps import correlation_map, gradient_gain, smoothed, variance_map
from jaxtrelu.theory._moments import Moments, moments
from jaxtrelu.theory._probe import linear_probe

__all__ = [
    "CriticalInit",
    "ErrorThreshold",
    "Information",
    "Moments",
    "QuantileSketch",
    "correlation_map",
    "critical_init",
    "gain",
    "gaussian_cutoff",
    "gradient_gain",
    "information",
    "linear_probe",
    "moments",
    "quantile_threshold",
    "rate_at",
    "smoothed",
    "threshold_for_error",
    "variance_map",
]
