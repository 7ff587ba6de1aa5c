"""From a matplotlib figure to SVG that a strict page can hold: no style attributes, themed colours, a text alternative.

The page's content security policy forbids inline styles, so every style property becomes a presentation attribute.
Colours of the palette also become classes (`f-ink` fills, `s-ink` strokes), which is how one figure serves light and
dark. The same input gives the same bytes: fixed salt for ids, no date, defaults whatever the user's matplotlibrc says.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass

from em_jax.base.sanitize import sanitize

LIGHT = {
    "paper": "#fbfaf7",
    "ink": "#1c2330",
    "soft": "#5b6472",
    "rule": "#d8d4c9",
    "base": "#66707f",
    "coherent": "#b3400c",
    "inverted": "#6a3fb0",
    "aligned": "#0a7457",
    "mixed": "#80661a",
}
DARK = {
    "paper": "#14171d",
    "ink": "#e9e7e2",
    "soft": "#a3abb8",
    "rule": "#363c48",
    "base": "#9aa4b2",
    "coherent": "#f0905c",
    "inverted": "#b89cf5",
    "aligned": "#58c7a3",
    "mixed": "#d4b45c",
}
_NAMES = {value: name for name, value in LIGHT.items()}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
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
    """A finished figure: `inline` for the page, `standalone` for figures/<name>.svg."""

    name: str
    inline: str
    standalone: str


def draw(name: str, title: str, description: str, size: tuple[float, float], paint: Callable) -> Drawing:
    """Paint a figure and make it fit for the page.

    Args:
      name: file name without ending, also the prefix of every id in it (ids share one page).
      title, description: the text alternative.
      size: inches.
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
            # Text stays text in the file: a glyph that matplotlib's own font lacks is the reader's font to find.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return _finish(out.getvalue(), name, title, description)


def _finish(raw: bytes, name: str, title: str, description: str) -> Drawing:
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(raw)
    for unwanted in [child for child in root if child.tag.endswith("metadata")]:
        root.remove(unwanted)
    _drop_styles(root)
    used = _references(root)
    for element in root.iter():
        _tidy(element, name, used)
    width, height = (root.attrib.pop(side).removesuffix("pt") for side in ("width", "height"))
    root.set("class", "figure")
    root.set("role", "img")
    root.set("aria-labelledby", f"figure-{name}-title figure-{name}-desc")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"figure-{name}-{tag}"})
        element.text = sanitize(text)
        root.insert(place, element)
    inline = ElementTree.tostring(root, encoding="unicode")
    root.set("width", width)
    root.set("height", height)
    style = ElementTree.Element(f"{{{_SVG}}}style")
    style.text = _standalone_css()
    root.insert(2, style)
    standalone = '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
    return Drawing(name, inline, standalone)


def _drop_styles(root) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}style":
                parent.remove(child)


def _references(root) -> set[str]:
    values = (value for element in root.iter() for value in element.attrib.values())
    return {found for value in values for found in re.findall(r"#([A-Za-z0-9_.-]+)", value)}


def _tidy(element, name: str, used: set[str]) -> None:
    for part in filter(None, element.attrib.pop("style", "").split(";")):
        key, _, value = part.partition(":")
        if key.strip() not in ("font-family", "font-stretch"):
            element.set(key.strip(), value.strip())
    classes = [
        f"{prefix}-{_NAMES[element.get(key)]}"
        for key, prefix in (("fill", "f"), ("stroke", "s"))
        if element.get(key) in _NAMES
    ]
    if element.tag == f"{{{_SVG}}}text" and element.get("fill") is None:
        classes.append("f-ink")
    if classes:
        element.set("class", " ".join(classes))
    identity = element.attrib.pop("id", None)
    if identity in used:
        element.set("id", f"figure-{name}-{identity}")
    if _XLINK in element.attrib:
        element.set("href", element.attrib.pop(_XLINK))
    for key, value in element.attrib.items():
        if "#" in value and not value.startswith("#") or key == "href":
            element.set(key, re.sub(r"#([A-Za-z0-9_.-]+)", rf"#figure-{name}-\1", value))
    if "d" in element.attrib:
        element.set("d", " ".join(element.get("d").split()))
    if element.text is not None and not element.text.strip():
        element.text = None
    if element.tail is not None and not element.tail.strip():
        element.tail = None


def theme_css(palette: dict[str, str]) -> str:
    """CSS custom properties of a palette, `--ink: #1c2330; ...`."""
    return " ".join(f"--{name}: {value};" for name, value in palette.items())


def class_css() -> str:
    """The classes that figures use for their colours."""
    return "\n".join(f".f-{name} {{ fill: var(--{name}); }} .s-{name} {{ stroke: var(--{name}); }}" for name in LIGHT)


def _standalone_css() -> str:
    return (
        f"\nsvg {{ {theme_css(LIGHT)} font-family: sans-serif; background: var(--paper);"
        " stroke-linejoin: round; stroke-linecap: butt; }\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {theme_css(DARK)} }} }}\n{class_css()}\n"
    )
