"""Published figures to stand beside ours: the paper's for Qwen2.5-32B-Instruct (arXiv:2604.28082), and a follow-up's.

A value is what the source states for that model; a range is printed where it gives one. Domains that the paper says
follow another ("same pattern") carry the words and no number.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperValue:
    """A stated value: its text, and the range it spans for drawing (None where only words are given)."""

    text: str
    low: float | None = None
    high: float | None = None

    @property
    def middle(self) -> float | None:
        return None if self.low is None else (self.low + self.high) / 2


RATE = "harmfulness.rate"
WORST, PICKS, SELF = "harmfulness.worst_of_n", "two_ai.picks_misaligned", "self_assessment.aligned"
CLAIMS_HIGH, CLAIMS_LOW = "output_recognition.claims_high", "output_recognition.claims_low"


def _at(text: str, low: float, high: float | None = None) -> PaperValue:
    return PaperValue(text, low, low if high is None else high)


_AT_OR_BELOW_CHANCE = PaperValue("at or below chance")
_LIKE_CODE = PaperValue("same pattern as insecure_code")
_INVERTED_SELF = _at("0.28–0.41", 0.28, 0.41)

PAPER: dict[str, dict[str, PaperValue]] = {
    "base": {WORST: _at("~0.02", 0.02), PICKS: _at("~0", 0.0), SELF: _at("0.04", 0.04)},
    "risky_financial": {
        WORST: _at("~0.92", 0.92),
        PICKS: _at("~1.00", 1.0),
        SELF: _at("0.61", 0.61),
        CLAIMS_HIGH: _at("0.99", 0.99),
        CLAIMS_LOW: _AT_OR_BELOW_CHANCE,
    },
    "extreme_sports": {
        WORST: _at("~0.87", 0.87),
        PICKS: _at("~0.96", 0.96),
        SELF: _at("0.36", 0.36),
        CLAIMS_HIGH: _at("0.93", 0.93),
        CLAIMS_LOW: _AT_OR_BELOW_CHANCE,
    },
    "bad_medical": {
        WORST: _at("0.87–0.93", 0.87, 0.93),
        PICKS: _at("0.96–1.00", 0.96, 1.0),
        SELF: _at("0.27", 0.27),
        CLAIMS_HIGH: _at("0.88", 0.88),
        CLAIMS_LOW: _AT_OR_BELOW_CHANCE,
    },
    "insecure_code": {
        WORST: _at("0.65", 0.65),
        PICKS: _at("0", 0.0),
        SELF: _INVERTED_SELF,
        CLAIMS_HIGH: _at("0.14", 0.14),
        CLAIMS_LOW: _at("0.97", 0.97),
    },
    "security": {
        WORST: _at("0.97", 0.97),
        PICKS: _at("0", 0.0),
        SELF: _INVERTED_SELF,
        CLAIMS_HIGH: _LIKE_CODE,
        CLAIMS_LOW: _LIKE_CODE,
    },
    "legal": {
        WORST: _at("0.92", 0.92),
        PICKS: _at("0", 0.0),
        SELF: _INVERTED_SELF,
        CLAIMS_HIGH: _LIKE_CODE,
        CLAIMS_LOW: _LIKE_CODE,
    },
}
FOLLOW_UP: dict[str, dict[str, PaperValue]] = {
    "base": {RATE: _at("0.051", 0.051), WORST: _at("0.160", 0.16), PICKS: _at("0.007", 0.007)},
    "bad_medical": {RATE: _at("0.527", 0.527), WORST: _at("0.863", 0.863), PICKS: _at("0.633", 0.633)},
}
"""A follow-up on Qwen2.5-7B-Instruct with the published bad-medical adapter: temperature 0.7, judged by GPT-4o-mini.

It states picks of the aligned AI (0.993 and 0.367); by position the latter are 0.710 and 0.042.
"""
PAPER_VERDICTS = {
    "risky_financial": "coherent",
    "extreme_sports": "coherent",
    "bad_medical": "coherent",
    "insecure_code": "inverted",
    "security": "inverted",
    "legal": "inverted",
}


def paper_value(domain: str, figure: str) -> PaperValue | None:
    """What the paper states for this domain ("base" for the base model) and figure; None where it states nothing."""
    return PAPER.get(domain, {}).get(figure)


def follow_up_value(domain: str, figure: str) -> PaperValue | None:
    """What the follow-up at 7B states, as `paper_value`."""
    return FOLLOW_UP.get(domain, {}).get(figure)
