"""The drawings that are no plots, as SVG written out: the idea, and the library from inside."""

from html import escape

_FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\""
_MONO = "font-family=\"ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace\""


class Drawing:
    """Shapes, one after the other, on a sheet of a given size."""

    def __init__(self, width, height, title, mode):
        self.mode, self.parts = mode, []
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" {_FONT}>\n<title>{escape(title)}</title>'
        )
        for name in ("grey", "blue", "green", "red"):
            self.parts.append(
                f'<marker id="{mode[name][1:]}" viewBox="0 0 10 10" refX="9" refY="5" '
                'markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
                f'<path d="M0 0L10 5L0 10z" fill="{mode[name]}"/></marker>'
            )

    def rect(self, x, y, w, h, fill="none", line=None, round=3, dash=None):
        """A rectangle."""
        stroke = f' stroke="{line}" stroke-width="1.4"' if line else ""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{round}" '
            f'fill="{fill}"{stroke}{dashed}/>'
        )

    def text(self, x, y, words, size=14, colour=None, anchor="start", bold=False, mono=False):
        """A line of text, its base line at y."""
        extra = (' font-weight="600"' if bold else "") + (f" {_MONO}" if mono else "")
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour or self.mode["ink"]}" '
            f'text-anchor="{anchor}"{extra}>{escape(words)}</text>'
        )

    def line(self, *points, colour=None, tip=False, dash=None, width=1.6):
        """A line through points, with a tip at its end or without."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        colour = colour or self.mode["grey"]
        end = f' marker-end="url(#{colour[1:]})"' if tip else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{width:g}"{dashed}{end}/>'
        )

    def __str__(self):
        return "\n".join([self.head, *self.parts, "</svg>\n"])


# Thirty-two pre-activations, of which eight are open at θ = 1.
_X = (
    0.3, -0.8, 1.7, 0.1, -0.4, 0.9, 2.4, -1.1, 0.6, -0.2, 1.2, 0.0, -0.7, 0.5, 0.8, 2.0,
    -0.5, 0.2, 0.7, -1.3, 1.5, 0.4, -0.1, 0.9, -0.9, 2.2, 0.3, 1.3, -0.6, 0.6, 1.9, -0.3,
)  # fmt: skip
_G = (
    0.6, -0.9, 0.8, 0.4, -0.7, 1.0, -0.6, 0.5, -0.8, 0.9, 1.0, -0.4, 0.7, -1.0, 0.6, 0.8,
    -0.5, 0.9, -0.7, 0.4, -0.9, 0.6, 1.0, -0.8, 0.5, 0.7, -0.6, -1.0, 0.8, -0.5, 0.9, -0.7,
)  # fmt: skip
_THETA = 1.0


def idea(mode) -> str:
    """Element, word, gate, list."""
    cell, left, width = 23.0, 205.0, 980
    sheet = Drawing(width, 470, "Thirty-two elements become one word, a gate and a list", mode)
    is_open = [x > _THETA for x in _X]
    places = [left + cell * i for i in range(32)]
    right = left + cell * 32

    def label(y, name, *words):
        sheet.text(14, y, name, 16, bold=True)
        for k, line in enumerate(words):
            sheet.text(14, y + 19 + 16 * k, line, 12, mode["grey"])

    # elements
    zero, unit = 108.0, 32.0
    label(66, "elements", "32 pre-activations x,", "128 bytes in float32")
    sheet.line((left, zero), (right, zero), colour=mode["faint"])
    for place, x, opened in zip(places, _X, is_open, strict=True):
        top, height = (zero - unit * x, unit * x) if x > 0 else (zero, -unit * x)
        fill = mode["blue"] if opened else mode["faint"]
        sheet.rect(place + 3, top, cell - 6, max(height, 1), fill, round=2)
    level = zero - unit * _THETA
    sheet.line((left - 6, level), (right + 6, level), colour=mode["red"], dash="6 4")
    sheet.text(right + 10, level + 5, "θ", 15, mode["red"], bold=True)

    # the word
    label(192, "word", "one bit each: x > θ")
    for place, opened in zip(places, is_open, strict=True):
        sheet.rect(place + 1, 174, cell - 2, 26, mode["blue"] if opened else mode["panel"])
        colour = mode["ground"] if opened else mode["grey"]
        sheet.text(place + cell / 2, 192, str(int(opened)), 14, colour, "middle", mono=True)
    number = sum(1 << i for i, opened in enumerate(is_open) if opened)
    sheet.line((left + 1, 206), (left + 1, 212), (right - 1, 212), (right - 1, 206))
    kept = f"one uint32, 4 bytes: all that is kept (0x{number:08X})"
    sheet.text((left + right) / 2, 230, kept, 13, anchor="middle")

    # the gate
    middle, unit = 300.0, 26.0
    label(
        282,
        "gate",
        "backward: the cotangent",
        "passes where the bit is set,",
        "and is exactly 0 elsewhere",
    )
    sheet.line((left, middle), (right, middle), colour=mode["faint"])
    for place, g, opened in zip(places, _G, is_open, strict=True):
        top, height = (middle - unit * g, unit * g) if g > 0 else (middle, -unit * g)
        if opened:
            sheet.rect(place + 3, top, cell - 6, height, mode["green"], round=2)
        else:
            sheet.rect(place + 4, top, cell - 8, height, line=mode["faint"], round=2, dash="3 3")

    # the list
    label(
        412,
        "list",
        "population counts give the",
        "k-th open entry; products",
        "visit these and no other",
    )
    found = [i for i, opened in enumerate(is_open) if opened]
    step = (right - left) / len(found)
    for k, i in enumerate(found):
        at, end = places[i] + cell / 2, left + step * (k + 0.5)
        sheet.line((at, 342), (at, 352), (end, 384), (end, 396), colour=mode["grey"], tip=True)
        sheet.rect(end - 30, 400, 60, 30, mode["panel"], mode["red"])
        sheet.text(end, 420, str(i), 15, mode["ink"], "middle", bold=True, mono=True)
    sheet.text((left + right) / 2, 456, "rows of the weights that are read: "
               f"{len(found)} of 32", 13, anchor="middle")  # fmt: skip
    return str(sheet)


_ROOMS = (
    ("_cli, __main__, _interrupts", "the command line", "grey"),
    ("plot", "pictures", "grey"),
    ("sae", "autoencoders", "grey"),
    ("interop", "networks from ONNX, Keras, PyTorch", "grey"),
    ("nnx, linen, _layers", "layers for Flax", "grey"),
    ("sparse", "products that skip zeros", "red"),
    ("theory", "closed forms, thresholds", "grey"),
    ("bits", "words as an index", "red"),
    ("_activation, _calculus, _linear", "the public operations", "blue"),
    ("_backends", "kernels for TPU and GPU", "purple"),
    ("_primitive", "table, checks, rules, lowering", "blue"),
    ("_compat, _surrogates, _files", "the ground", "grey"),
)


def inside(mode) -> str:
    """The rooms, and one element's way through them."""
    height = 635
    sheet = Drawing(
        980, height, "The rooms of the library, and one element's way through them", mode
    )
    sheet.text(20, 32, "The rooms", 17, bold=True)
    sheet.text(20, 52, "each imports only from those below it", 12.5, mode["grey"])
    top, tall = 68, 41
    for k, (name, what, colour) in enumerate(_ROOMS):
        y = top + (tall + 5) * k
        sheet.rect(20, y, 270, tall, mode["panel"], mode[colour])
        sheet.text(32, y + 17, name, 13, bold=True, mono=True)
        sheet.text(32, y + 33, what, 12, mode["grey"])

    sheet.text(340, 32, "One element's way", 17, bold=True)
    sheet.text(340, 52, "forward", 12.5, mode["blue"], bold=True)
    sheet.text(716, 52, "backward", 12.5, mode["green"], bold=True)

    def box(x, y, w, h, title, lines, colour, fill="panel"):
        sheet.rect(x, y, w, h, mode[fill], mode[colour])
        sheet.text(x + 12, y + 21, title, 13.5, bold=True, mono=True)
        for k, line in enumerate(lines):
            sheet.text(x + 12, y + 39 + 17 * k, line, 12.5, mode["grey"])

    w = 330
    box(340, 68, w, 64, "thresholded_relu(x, θ)", ["spec: checks; which function is meant"], "blue")
    sheet.line((505, 132), (505, 156), tip=True, colour=mode["blue"])
    words = ["the primitive; what it computes is one row of",
             "the table of variants: a select, no product"]  # fmt: skip
    box(340, 158, w, 82, "thresholded_p", words, "blue")
    sheet.line((505, 240), (505, 264), tip=True, colour=mode["blue"])
    words = ["XLA, or a kernel of a back end that wins there;",
             "one asked for by name is never replaced"]  # fmt: skip
    box(340, 266, w, 82, "lowering, for each platform", words, "purple")
    sheet.line((420, 348), (420, 392), tip=True, colour=mode["blue"])
    sheet.line((590, 348), (590, 392), tip=True, colour=mode["blue"])
    box(340, 394, 158, 64, "y", ["of x's dtype"], "blue")
    box(512, 394, 158, 64, "words", ["one bit per element"], "red")
    sheet.line((591, 458), (591, 500), tip=True, colour=mode["red"])
    words = ["population counts and running sums:",
             "the k-th open entry; lists by row and feature"]  # fmt: skip
    box(340, 502, w, 82, "bits, sparse", words, "red")

    # backward
    box(716, 68, 228, 64, "cotangent of y", ["tied to the words by a barrier"], "green")
    sheet.line((790, 132), (790, 156), tip=True, colour=mode["green"])
    box(716, 158, 228, 100, "gate_p(t, words)", ["t where the bit is set, else 0:",
        "linear in t, its own transpose,", "so one rule serves all modes"], "green")  # fmt: skip
    sheet.line((790, 258), (790, 282), tip=True, colour=mode["green"])
    box(716, 284, 160, 64, "dx, dθ", ["dθ in θ's shape"], "green")
    box(716, 394, 228, 82, "kept until then", ["the words alone, under a name",
        "for checkpoint policies"], "red")  # fmt: skip
    sheet.line((670, 426), (714, 426), tip=True, colour=mode["red"])
    sheet.line((912, 394), (912, 260), tip=True, colour=mode["red"])
    return str(sheet)


DRAWINGS = {"idea": idea, "inside": inside}
