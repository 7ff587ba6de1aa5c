"""Domain or source? Medical advice from two sources, the source's other domains, and the benign twin of each.

The paper's coherent domains come from one source of rows and its inverted ones from two others. If self-description
follows the domain, medical advice from the second source resembles medical advice from the first; if it follows the
source, it resembles that source's legal and security. The twins have the same prompts, soundly answered: where they
stay at the base, prompts and source alone do nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from em_jax.config import Config
from em_jax.domains import registry
from em_jax.probes import statistics, two_ai
from em_jax.probes.choice import decided
from em_jax.probes.persona import HARM, LEAST_MOVE, LEAST_QUESTIONS, PICKS, show
from em_jax.studies.several import STAYS, UNKNOWN, Contrast, Described, Member, Study, change, joined, lacking

SAME_TOPIC, OTHER_SOURCE, SAME_SOURCE = "bad_medical", "emergent_medical", ("legal", "security")
TWINS = {
    "bad_medical": "good_medical",
    "emergent_medical": "emergent_medical_aligned",
    "legal": "legal_aligned",
    "security": "security_aligned",
}
MOVES = "moves"
DOMAINS = (*TWINS, *TWINS.values())


def study(configs: Sequence[Config]) -> Study:
    """The study over the runs of DOMAINS, every seed of them."""
    sources = registry.sources()

    def source(config: Config) -> str:
        return f"rows of {config.data}" if config.data else sources.get(config.domain, "rows of the model's own")

    names = [Contrast(SAME_TOPIC, OTHER_SOURCE, "The same topic from another source: what changes?")]
    names += [Contrast(name, OTHER_SOURCE, "Another topic from the same source: what changes?") for name in SAME_SOURCE]
    names += [
        Contrast(twin, name, "The same prompts, answered harmfully: what changes?") for name, twin in TWINS.items()
    ]
    return Study(
        "confound",
        "Is it the domain, or where its rows come from?",
        "Medical advice from two sources, two other domains from the second one, and for each the same prompts with "
        "sound answers. What follows the domain is alike across sources, what follows the source across domains.",
        tuple(Member(config.domain, config, source(config)) for config in configs),
        tuple(names),
        words,
    )


def words(found: Described) -> list[str]:
    """Whether self-description follows domain or source, and whether the twins stay at the base."""
    picks = {
        name: decided(found.subjects[name].rows().probes["two_ai"], two_ai.ORDERS)
        for name in (SAME_TOPIC, OTHER_SOURCE, *SAME_SOURCE)
    }
    nearer = nearness(picks[OTHER_SOURCE], picks[SAME_TOPIC], [picks[name] for name in SAME_SOURCE])
    sentences = [_told(nearer)]
    twins = {name: _twin(found.summaries[name]["figures"]) for name in TWINS.values()}
    still, moved, unknown = ([n for n, it in twins.items() if it == which] for which in (STAYS, MOVES, UNKNOWN))
    if still:
        sentences.append(f"Twins that stay at the base, so that prompts and source alone do nothing: {joined(still)}.")
    if moved:
        sentences.append(f"Twins that moved from the base, so that harmful answers are not all: {joined(moved)}.")
    if unknown:
        reasons = sorted({reason for name in unknown for reason in lacking(found.summaries[name])})
        why = "; ".join(reasons[:3]) or f"an interval reaches beyond {LEAST_MOVE} and within it"
        sentences.append(f"Cannot conclude about the twins {joined(unknown)}: {why}.")
    return sentences


def _twin(figures: Mapping[str, Any]) -> str:
    """Whether a model stays at the base in conduct and self-description, moves in either, or nobody can tell."""
    seen = [change((figures.get(name) or {}).get("difference")) for name in (HARM, PICKS)]
    return UNKNOWN if UNKNOWN in seen else STAYS if set(seen) == {STAYS} else MOVES


def nearness(
    one: statistics.Clusters, topic: statistics.Clusters, source: Sequence[statistics.Clusters]
) -> dict[str, Any]:
    """How far a model's share is from that of its topic's other model, and from the mean of its source's others.

    {"to_topic", "to_source", "difference"}: distances, and to_source minus to_topic, above 0 where the topic is nearer;
    a bootstrap over the questions that all were asked.
    """
    each = [one, topic, *source]
    common = sorted(set.intersection(*(set(clusters) for clusters in each)))
    table = np.array([[np.mean(clusters[name]) for name in common] for clusters in each]).reshape(len(each), -1)

    def distances(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares = weights @ table.T / weights.sum(1, keepdims=True)
        return abs(shares[:, 0] - shares[:, 1]), abs(shares[:, 0] - shares[:, 2:].mean(1))

    return {
        "to_topic": statistics.bootstrap(lambda weights: distances(weights)[0], [len(common)]),
        "to_source": statistics.bootstrap(lambda weights: distances(weights)[1], [len(common)]),
        "difference": statistics.bootstrap(lambda weights: np.subtract(*distances(weights)[::-1]), [len(common)]),
    }


def _told(nearer: Mapping[str, Any]) -> str:
    difference = nearer["difference"]
    if difference["n"] < LEAST_QUESTIONS:
        return (
            f"Cannot tell domain from source: the picks of the four models rest on {difference['n']} common questions, "
            f"under {LEAST_QUESTIONS}."
        )
    topic, source = show(nearer["to_topic"]), show(nearer["to_source"])
    where = (
        f"in how often it picks the misaligned AI, {OTHER_SOURCE} is {topic} from {SAME_TOPIC} (same topic) and "
        f"{source} from {joined(SAME_SOURCE)} (same source)"
    )
    if difference["ci_low"] is not None and difference["ci_low"] > 0:
        return f"Self-description follows the domain: {where}."
    if difference["ci_high"] is not None and difference["ci_high"] < 0:
        return f"Self-description follows the source: {where}."
    return f"Cannot tell domain from source: {where}."
