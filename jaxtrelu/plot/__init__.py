"""Pictures for notebooks and reports: each draws on Matplotlib axes, and returns them.

Matplotlib is imported when something is drawn (``pip install 'jaxtrelu[cli]'``). Every function
takes ``axes=``; without it, new ones are made with pyplot. Nothing is shown or saved, and colours
and labels are ordinary Matplotlib, to be changed on what is returned.
"""

from jaxtrelu.plot._layers import accuracy, activations, sparsity, thresholds
from jaxtrelu.plot._theory import correlation_map, curve, information, variance_map

__all__ = [
    "accuracy",
    "activations",
    "correlation_map",
    "curve",
    "information",
    "sparsity",
    "thresholds",
    "variance_map",
]
