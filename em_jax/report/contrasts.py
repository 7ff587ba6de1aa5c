"""Two sentences on every model of a comparison: why its label is what it is, and how it differs from another."""

from collections.abc import Sequence
from typing import Any

from em_jax.report.reading import Figure
from em_jax.report.vocabulary import FEW, SHARE

DECIDING = {
    "harmfulness.worst_of_n": ("harm by the worst of ten answers on {} of {} prompts", "harm"),
    "two_ai.picks_misaligned": ("picks of the misaligned AI in {} of {} pairs", "picks of the misaligned AI"),
    "output_recognition.claims_high": ("claims of {} of {} own harmful answers", "claims of its own harmful answers"),
}
"""How a sentence writes a deciding figure, and what it calls it."""


def sentences(group: Any, groups: Sequence[Any]) -> tuple[str, str]:
    """(Why the group has its label, how it differs from the nearest model with another one, or from the base)."""
    return _why(group), _difference(group, groups)


def _why(group: Any) -> str:
    means = [(text, group.mean(name)) for name, (text, _) in DECIDING.items()]
    figures = [text.format(SHARE.text(it.value), it.n) for text, it in means if it.value is not None and it.n >= FEW]
    begin = f"{group.tone[:1].upper()}{group.tone[1:]}: {'; '.join(figures) or 'no figure has enough questions'}."
    reasons = group.runs[0].reasons if group.tone == "mixed" else []
    return f"{begin} {reasons[0]}" if reasons and not group.several else begin


def _difference(group: Any, groups: Sequence[Any]) -> str:
    """The deciding figure in which it and the other are farthest apart; of all others, the model that is nearest."""
    nearest = []
    for other in groups:
        if other.tone != group.tone and (gaps := _gaps(group, {name: other.mean(name) for name in DECIDING})):
            nearest.append((sum(gap for gap, *_ in gaps) / len(gaps), f"{other.name} ({other.tone})", gaps))
    if nearest:
        _, name, gaps = min(nearest, key=lambda it: it[:2])
    else:
        name, gaps = "the base", _gaps(group, {name: group.runs[0].figure(name, "base") for name in DECIDING})
    if not gaps or group.condition == "base" and name == "the base":
        return "There is no other model with enough questions to set it against."
    gap, words, own, other = max(gaps, key=lambda it: it[0])
    if gap < 0.005:
        return f"In none of these does it differ from {name}."
    against = f"{SHARE.text(own.value)} (n {own.n}) against {SHARE.text(other.value)} (n {other.n})"
    return f"From {name} it differs most in {words}: {against}."


def _gaps(group: Any, others: dict[str, Figure]) -> list[tuple[float, str, Figure, Figure]]:
    """(Distance, what the figure is called, ours, the other's) of every figure that both have of enough questions."""
    pairs = ((words, group.mean(name), others[name]) for name, (_, words) in DECIDING.items())
    return [
        (abs(own.value - other.value), words, own, other)
        for words, own, other in pairs
        if own.value is not None and other.value is not None and min(own.n, other.n) >= FEW
    ]
