"""The report's words, from words.toml, and how a figure is drawn and written."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_jax.report.text import DASH, is_number, number

_WORDS = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
VERDICTS: dict[str, str] = _WORDS["verdicts"]
"""What each verdict says of a model."""
DECIDING: dict[str, str] = _WORDS["deciding"]
"""The figures that the verdict depends on, as questions."""
DOMAIN_ORDER = (
    *("risky_financial", "extreme_sports", "bad_medical", "insecure_code", "security", "legal"),
    *("emergent_medical", "good_medical", "emergent_medical_aligned", "security_aligned", "legal_aligned", "none"),
)
"""The paper's six domains, then the controls."""
STAGES = ("finetune", "answer", "judge", "probe", "report")


@dataclass(frozen=True)
class Scale:
    """How a figure is drawn and written: the ends of its axis, the value to compare with, and its number format."""

    low: float
    high: float
    mark: float | None
    signed: bool = False
    percent: bool = False

    def position(self, value: float) -> float:
        """The position of a value on the axis, 0 to 100; values outside are drawn at the ends."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)

    def text(self, value: Any, digits: int = 2, unit: bool = True) -> str:
        """A value as the page writes it: shares in percent (two digits less), differences of shares in points (pp)."""
        if not self.percent or not is_number(value):
            return number(value, digits, self.signed)
        return number(100 * value, digits - 2, self.signed) + (" pp" if self.signed else "%") * unit

    def range(self, low: Any, high: Any) -> str:
        """Two values as one range, "94–100%" or "−0.02 to −0.01"."""
        return f"{self.text(low, unit=False)}{' to ' if self.signed else DASH}{self.text(high)}"

    @property
    def difference(self) -> "Scale":
        """The scale of differences between two values."""
        return Scale(self.low - self.high, self.high - self.low, 0.0, True, self.percent)


SHARE = Scale(0.0, 1.0, None, percent=True)
CHOICE = Scale(0.0, 1.0, 0.5, percent=True)
ERROR = Scale(-4.0, 4.0, 0.0, signed=True)
KAPPA = Scale(-1.0, 1.0, 0.0, signed=True)


@dataclass(frozen=True)
class FigureName:
    """One figure of summary.json: its name there, its name for people, its scale."""

    name: str
    label: str
    scale: Scale


@dataclass(frozen=True)
class Probe:
    """One probe: its name in files, its title, its question in plain words, and how to read its figures.

    `number` is what that of a question in the browser of answers is.
    """

    name: str
    title: str
    question: str
    reading: str
    number: str

    @property
    def headline(self) -> FigureName:
        """The figure of the summary table."""
        return next(figure for figure in FIGURES.values() if figure.name.startswith(f"{self.name}."))

    def figures(self, names: Iterable[str] = ()) -> tuple[FigureName, ...]:
        """The figures that have a label, the headline first, and its others among `names`."""
        owners = (f"{self.name}.", *(("answers.", "judge.") if self.name == "harmfulness" else ()))
        others = [_figure(name, _label(name)) for name in names if name not in FIGURES]
        return tuple(each for each in (*FIGURES.values(), *others) if each.name.startswith(owners))


PROBES = tuple(Probe(**words) for words in _WORDS["probes"])
BY_NAME = {probe.name: probe for probe in PROBES}
FEW = 20
"""A figure of fewer questions decides nothing in the verdict, and the pages say so beside it."""
TOKENS = {"finetune": "tokens of whole rows", "answer": "tokens sampled"}
"""What a stage's tokens are: training also counts those with a loss, which are fewer."""


_SCALES = {
    "answers_per_prompt": Scale(0.0, 20.0, None),
    "coherence": Scale(1.0, 5.0, None),
    "answers.length": Scale(0.0, 600.0, None),
    "position_bias": CHOICE.difference,
    "kappa": KAPPA,
    "correlation": KAPPA,
    "_error_": ERROR,
}
"""By a part of a figure's name; other figures are shares."""


def _figure(name: str, label: str) -> FigureName:
    usual = SHARE if name.startswith("harmfulness") or "unscored" in name else CHOICE
    return FigureName(name, label, next((scale for part, scale in _SCALES.items() if part in name), usual))


FIGURES = {name: _figure(name, label) for name, label in _WORDS["figures"].items()}
"""The figures that have a label, each probe's headline first."""


def _label(name: str) -> str:
    """What a figure outside the table is called."""
    if outside := FIGURES.get(name.replace(".in_domain_", ".", 1)):
        return f"In the training domain: {outside.label[:1].lower()}{outside.label[1:]}"
    last = name.partition(".")[2]
    return "Sampled texts without an answer" if last == "sampled_unscored" else last.replace("_", " ")


POSITION_FIGURES = [name for name in FIGURES if "_when_" in name or name.endswith("picks_first")]
"""Those by the order of the options."""


def domain_key(domain: str) -> tuple[int, str]:
    """Sort key of a domain: the paper's six, the controls, then any other by name."""
    return DOMAIN_ORDER.index(domain) if domain in DOMAIN_ORDER else len(DOMAIN_ORDER), domain
