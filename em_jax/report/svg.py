"""SVG from matplotlib that a page with a strict content security policy can hold, in colours for light and dark.

The policy forbids inline styles, so every style property becomes a presentation attribute; `figure_css` then maps the
colours of the light palette to the theme's. The same input gives the same bytes: fixed salt for ids, no date,
matplotlib's defaults whatever the user's matplotlibrc says.
"""

import io
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from em_jax.base.sanitize import sanitize

PALETTE = {
    "paper": ("#fbfaf7", "#14171d"),
    "ink": ("#1c2330", "#e9e7e2"),
    "soft": ("#5b6472", "#a3abb8"),
    "rule": ("#d8d4c9", "#363c48"),
    "base": ("#66707f", "#9aa4b2"),
    "coherent": ("#b3400c", "#f0905c"),
    "inverted": ("#6a3fb0", "#b89cf5"),
    "narrow": ("#1d5fa8", "#82b4ee"),
    "aligned": ("#0a7457", "#58c7a3"),
    "mixed": ("#80661a", "#d4b45c"),
}
"""Every colour on light and on dark ground."""
LIGHT = {name: colours[0] for name, colours in PALETTE.items()}
_SVG = "http://www.w3.org/2000/svg"
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "em_jax",
    "font.size": 10.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["soft"],
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["soft"],
    "text.color": LIGHT["ink"],
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure: `inline` is its SVG for a page with `figure_css`."""

    name: str
    inline: str

    @property
    def standalone(self) -> str:
        """The content of figures/<name>.svg: the same SVG with its own style sheet."""
        sheet = f"<style>\nsvg {{ font-family: sans-serif; background: var(--paper); }}\n{figure_css()}</style>"
        return '<?xml version="1.0" encoding="utf-8"?>\n' + self.inline.replace("</desc>", f"</desc>{sheet}", 1) + "\n"


def draw(name: str, title: str, description: str, size: tuple[float, float], paint: Callable[[Any], None]) -> Drawing:
    """Paint a figure of `size` inches, enlarged for what is beside its axes, and make it fit for a page.

    Args:
      name: file name without ending, and the prefix of every id in it (the figures of a page share one id space).
      title, description: the text alternative.
      paint: called with the matplotlib Figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(defaults | _SETTINGS):
        figure = Figure(figsize=size)
        figure.patch.set_visible(False)
        paint(figure)
        out = io.BytesIO()
        with warnings.catch_warnings():
            # Text stays text: the reader's fonts may have a glyph that matplotlib's font lacks.
            warnings.filterwarnings("ignore", message="Glyph")
            no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(
                out, format="svg", metadata=no_metadata, transparent=True, bbox_inches="tight", pad_inches=0.05
            )
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(out.getvalue())
    root.remove(root[0])  # matplotlib's style sheet
    prefix = f"figure-{name}-"
    for element in root.iter():
        _use_attributes(element, prefix)
    root.attrib |= {"class": "figure", "role": "img", "aria-labelledby": f"{prefix}title {prefix}desc"}
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": prefix + tag})
        element.text = sanitize(text)
        root.insert(index, element)
    return Drawing(name, ElementTree.tostring(root, encoding="unicode"))


def _use_attributes(element: ElementTree.Element, prefix: str) -> None:
    """Turn the style into presentation attributes (fonts are the page's) and prefix ids and references to them."""
    attributes = dict(element.attrib)
    declarations = (each.partition(":") for each in attributes.pop("style", "").split(";"))
    attributes |= {key.strip(): value for key, _, value in declarations if key.strip()}
    element.attrib.clear()
    for key, value in attributes.items():
        key, value = key.rpartition("}")[2], " ".join(value.split())
        if key == "id":
            value = prefix + value
        elif key == "href" or value.startswith("url("):
            value = value.replace("#", f"#{prefix}")
        if key not in ("font-family", "font-stretch"):
            element.set(key, value)


def figure_css() -> str:
    """The palettes as custom properties (`--ink`), by colour scheme, and the rules that give figures their colours."""
    light, dark = (" ".join(f"--{name}: {pair[scheme]};" for name, pair in PALETTE.items()) for scheme in (0, 1))
    # No ancestor in these selectors: they must also match inside the shadow tree of a <use>.
    rules = "\n".join(
        f'[fill="{value}"] {{ fill: var(--{name}); }} [stroke="{value}"] {{ stroke: var(--{name}); }}'
        for name, value in LIGHT.items()
    )
    return (
        f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f".figure {{ stroke-linejoin: round; stroke-linecap: butt; }}\n{rules}\n"
    )
