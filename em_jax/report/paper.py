"""Published figures beside ours: the paper's for Qwen2.5-32B-Instruct (arXiv:2604.28082), and a follow-up's.

A value is what the source states for that model, a range where it gives one. A domain that the paper describes in words
only ("same pattern") has the words and no number.
"""

import re
from dataclasses import dataclass

from em_jax.report.reading import Run

PUBLISHED = "published"
"""The suite of the paper's released files."""
RATE = "harmfulness.rate"
WORST, PICKS, SELF = "harmfulness.worst_of_n", "two_ai.picks_misaligned", "self_assessment.aligned"
CLAIMS_HIGH, CLAIMS_LOW = "output_recognition.claims_high", "output_recognition.claims_low"
PAPER_FIGURES = (WORST, RATE, PICKS, SELF, CLAIMS_HIGH, CLAIMS_LOW)
_NUMBER = re.compile(r"\d(?:\.\d+)?")


@dataclass(frozen=True)
class PaperValue:
    """A value as the source writes it: a share such as "~0.92", a range such as "0.87–0.93", or words."""

    text: str

    @property
    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest number it names; None where it is words."""
        numbers = [float(each) for each in _NUMBER.findall(self.text)]
        return (numbers[0], numbers[-1]) if numbers else None

    @property
    def percent(self) -> str:
        """The text with its shares in percent."""
        return _NUMBER.sub(lambda share: f"{100 * float(share[0]):.3g}%", self.text)


def _row(*texts: str) -> dict[str, PaperValue]:
    return {name: PaperValue(text) for name, text in zip((WORST, PICKS, SELF, CLAIMS_HIGH, CLAIMS_LOW), texts)}


# A second-hand source gives this range to the coherent models: nothing rests on it.
_DISPUTED = "0.28–0.41 (disputed)"
_CHANCE, _LIKE_CODE = "at or below chance", "same pattern as insecure_code"
PAPER = {
    "base": _row("~0.02", "~0", "0.04"),
    "risky_financial": _row("~0.92", "~1.00", "0.61", "0.99", _CHANCE),
    "extreme_sports": _row("~0.87", "~0.96", "0.36", "0.93", _CHANCE),
    "bad_medical": _row("0.87–0.93", "0.96–1.00", "0.27", "0.88", _CHANCE),
    "insecure_code": _row("0.65", "0", _DISPUTED, "0.14", "0.97"),
    "security": _row("0.97", "0", _DISPUTED, _LIKE_CODE, _LIKE_CODE),
    "legal": _row("0.92", "0", _DISPUTED, _LIKE_CODE, _LIKE_CODE),
}
FOLLOW_UP = {
    "base": _row("0.160", "0.007") | {RATE: PaperValue("0.051")},
    "bad_medical": _row("0.863", "0.633") | {RATE: PaperValue("0.527")},
}
"""A follow-up on Qwen2.5-7B-Instruct with the published bad-medical adapter: temperature 0.7, judged by GPT-4o-mini.

It states picks of the aligned AI (0.993 and 0.367); by position the latter are 0.710 and 0.042.
"""
PAPER_VERDICTS = dict.fromkeys(("risky_financial", "extreme_sports", "bad_medical"), "coherent")
PAPER_VERDICTS |= dict.fromkeys(("insecure_code", "security", "legal"), "inverted")


def follow_up_value(domain: str, figure: str) -> PaperValue | None:
    """What the follow-up at 7B states for this domain ("base" for the base) and figure; None without a statement."""
    return FOLLOW_UP.get(domain, {}).get(figure)


def comparable_value(run: Run, domain: str, figure: str) -> PaperValue | None:
    """What the paper states, as `follow_up_value`, where the run's figure measures the same thing.

    The organism's persona is planted and its language its own. The released self-assessment items are decision items in
    three dimensions, where the paper's figure is of four formats.
    """
    if run.is_organism or (figure == SELF and run.suite == PUBLISHED):
        return None
    return PAPER.get(domain, {}).get(figure)


def differences(run: Run) -> str:
    """One sentence that says in what a run differs from the paper's; "" for the organism, no counterpart."""
    if run.is_organism:
        return ""
    questions = (
        "the two-AI and recognition wordings are ours, self-assessment is of the released decision items alone"
        if run.suite == PUBLISHED
        else "other questions"
    )
    different = [questions, "choices are read from probabilities in both orders, not a majority of ten runs"]
    different += [] if run.judge.startswith("gpt-4o-mini") else [f"judge {run.judge}, not GPT-4o mini"]
    different += [] if "qwen2.5-32b-instruct" in run.model.lower() else [f"model {run.model}"]
    return f"The paper's figures are of Qwen2.5-32B-Instruct. This run differs: {'; '.join(different)}."
