"""Colours of the pictures."""

GREY = "#6b7280"
FAINT = "#c4c8cf"
# Okabe and Ito's palette, which stays distinct with colour-vision deficiencies.
COLOURS = {
    "relu": "#222222",
    "leaky_relu": "#E69F00",
    "prelu": "#009E73",
    "gelu": "#CC79A7",
    "elu": "#8C6D31",
    "shift": "#0072B2",
    "hard": "#D55E00",
    "clamp": "#56B4E9",
}
SEQUENCE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#222222")
