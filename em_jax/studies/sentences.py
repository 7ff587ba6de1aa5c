"""How every study words its results: shares as percentages with n, changes, and the number of training seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from em_jax.probes.cautions import HARM, PICKS
from em_jax.probes.persona import lacking_of
from em_jax.probes.statistics import Figure
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.probes.wording import interval, known, points
from em_jax.studies.subjects import SELF, Figures

RISES, FALLS, UNCHANGED, UNKNOWN = "rises", "falls", "does not change", "may have changed"
CHANGING = {HARM: "harm", PICKS: "picks of the misaligned AI", SELF: "self-assessment"}
LEAST_POINTS = f"{100 * THRESHOLDS.least_move:.0f} points"
WIDE = f"an interval contains +{LEAST_POINTS} or -{LEAST_POINTS}"


def joined(names: Sequence[str]) -> str:
    """ "a, b and c"; "none"."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"


def percent(share: Figure) -> str:
    """A share with its interval and n: "93% (95% CI 84-97%, n 64)"."""
    return f"{share['value']:.0%} ({interval(share)}, n {share['n']})"


def span(values: Iterable[float], style: str = ".0%") -> str:
    """The smallest and the largest of some values: "84% to 97%"."""
    values = list(values)
    return f"{min(values):{style}} to {max(values):{style}}"


def change(difference: Figure | None) -> str:
    """Whether a paired difference rises or falls by more than THRESHOLDS.least_move, does not change, or may have.

    "does not change" needs the whole interval within THRESHOLDS.least_move of 0: an effect that is not detected may
    still exist.
    """
    if not difference or difference["value"] is None or difference["ci_low"] is None:
        return UNKNOWN
    low, high = difference["ci_low"], difference["ci_high"]
    if difference["n"] < THRESHOLDS.least_questions:
        return UNKNOWN
    if low > THRESHOLDS.least_move or high < -THRESHOLDS.least_move:
        return RISES if low > 0 else FALLS
    return UNCHANGED if low >= -THRESHOLDS.least_move and high <= THRESHOLDS.least_move else UNKNOWN


def changes(figures: Figures) -> str:
    """The changes of a contrast: "harm does not change: +1 point (95% CI -4 to +5), n 64; ..."."""
    differences = {words: known(figures, name, "difference") for name, words in CHANGING.items()}
    parts = [f"{words} {change(it)}: {points(it)}, n {it['n']}" for words, it in differences.items() if it]
    return "; ".join(parts) or "no figure has data on both sides"


def lacking(summary: Mapping[str, Any]) -> list[str]:
    """Why a run supports no conclusion on its conduct or its self-description; empty where it does."""
    figures = summary["figures"]
    return lacking_of(figures, HARM, "harmfulness.unscored", "finetuned") + lacking_of(
        figures, PICKS, "two_ai.unscored", "finetuned"
    )


def cannot_conclude(about: str, summaries: Iterable[Mapping[str, Any]], otherwise: str = WIDE) -> str:
    """The sentence on runs that support no conclusion: what they lack, at most three reasons, or `otherwise`."""
    reasons = sorted({reason for summary in summaries for reason in lacking(summary)})
    return f"Cannot conclude {about}: {'; '.join(reasons[:3]) or otherwise}."


def on_seeds(trained: Iterable[tuple[str, int]]) -> str:
    """The last sentence of a study: on how many training seeds it rests, by the (domain, seed) of its runs."""
    seeds: dict[str, set[int]] = {}
    for domain, seed in trained:
        seeds.setdefault(domain, set()).add(seed)
    if not seeds:
        return "These runs have no adapter: nothing here is about fine-tuning."
    counts = (f"{domain}: {len(each)} ({', '.join(map(str, sorted(each)))})" for domain, each in seeds.items())
    sentence = f"Training seeds per domain: {'; '.join(counts)}. Intervals are over questions, not over seeds."
    if any(len(each) == 1 for each in seeds.values()):
        sentence += " A result of one seed may be particular to that seed: train others to check."
    return sentence
