"""Domain or source? Medical advice from two sources, the source's other domains, and the benign twin of each.

The paper's coherent domains come from one source of rows and its inverted ones from two others. If self-description
follows the domain, medical advice from the second source resembles medical advice from the first; if it follows the
source, it resembles that source's legal and security. The twins have the same prompts with sound answers: if they stay
at the base, prompts and source alone have no effect.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from em_jax import domains
from em_jax.config import Config
from em_jax.domains import registry
from em_jax.probes import statistics, two_ai
from em_jax.probes.cautions import HARM, PICKS
from em_jax.probes.choice import decided
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.probes.wording import known, points
from em_jax.runs import sources
from em_jax.studies.sentences import UNCHANGED, UNKNOWN, cannot_conclude, change, joined
from em_jax.studies.several import Contrast, Member, SeedResult, Study, toy_rows

DESCRIPTION = "Medical advice from two sources, the second source's other domains, and their benign twins."
FLAGS: dict[str, Any] = {}
SAME_TOPIC, OTHER_SOURCE, SAME_SOURCE = "bad_medical", "emergent_medical", ("legal", "security")
TWINS = {
    "bad_medical": "good_medical",
    "emergent_medical": "emergent_medical_aligned",
    "legal": "legal_aligned",
    "security": "security_aligned",
}
DOMAINS = (*TWINS, *TWINS.values())
MOVED = "moved"


def build(configs: Sequence[Config], flags: argparse.Namespace, run_dir: Path, rows: Path) -> Study:
    """The study over the runs of TWINS and their domains, every seed of them."""
    published = registry.sources()
    if sources.is_organism(configs[0]):
        configs = [
            dataclasses.replace(config, data=toy_rows(config.domain, rows))
            if domains.DOMAINS[config.domain].extra and not config.data
            else config
            for config in configs
        ]

    def source(config: Config) -> str:
        return f"rows of {config.data}" if config.data else published.get(config.domain, "rows of the model's own")

    return Study(
        "confound",
        "Is it the domain, or where its rows come from?",
        "Medical advice from two sources, two other domains from the second one, and for each the same prompts with "
        "sound answers. What follows the domain is alike across sources, what follows the source across domains.",
        tuple(Member(config.domain, config, source(config)) for config in configs),
        (
            Contrast(SAME_TOPIC, OTHER_SOURCE, "The same topic from another source: what changes?"),
            *(Contrast(it, OTHER_SOURCE, "Another topic from the same source: what changes?") for it in SAME_SOURCE),
            *(Contrast(twin, it, "The same prompts, answered harmfully: what changes?") for it, twin in TWINS.items()),
        ),
        sentences,
    )


def sentences(result: SeedResult) -> list[str]:
    """Whether self-description follows domain or source, and whether the twins stay at the base."""
    picks = {
        name: decided(two_ai.own_pairs(result.rows[name].probes["two_ai"]), two_ai.ORDERS)
        for name in (SAME_TOPIC, OTHER_SOURCE, *SAME_SOURCE)
    }
    nearer = nearness(picks[OTHER_SOURCE], picks[SAME_TOPIC], [picks[name] for name in SAME_SOURCE])
    lines = [nearness_sentence(nearer)]
    twins: dict[str, list[str]] = {UNCHANGED: [], MOVED: [], UNKNOWN: []}
    for name in TWINS.values():
        changes = {change(known(result.summaries[name]["figures"], figure, "difference")) for figure in (HARM, PICKS)}
        twins[UNKNOWN if UNKNOWN in changes else UNCHANGED if changes == {UNCHANGED} else MOVED].append(name)
    if twins[UNCHANGED]:
        lines.append(f"Twins that stay at the base: {joined(twins[UNCHANGED])}. Their prompts alone have no effect.")
    if twins[MOVED]:
        lines.append(f"Twins that moved from the base: {joined(twins[MOVED])}. Harmful answers are not the only cause.")
    if twins[UNKNOWN]:
        summaries = [result.summaries[name] for name in twins[UNKNOWN]]
        lines.append(cannot_conclude(f"about the twins {joined(twins[UNKNOWN])}", summaries))
    return lines


def nearness(
    one: statistics.Clusters, topic: statistics.Clusters, source: Sequence[statistics.Clusters]
) -> dict[str, Any]:
    """How far a model's share is from that of its topic's other model, and from the mean of its source's others.

    {"to_topic", "to_source", "difference"}: distances, and to_source minus to_topic, above 0 where the topic is nearer;
    a bootstrap over the questions that every model has.
    """
    models = [one, topic, *source]
    common = sorted(set.intersection(*(set(clusters) for clusters in models)))
    table = np.array([[np.mean(clusters[name]) for name in common] for clusters in models]).reshape(len(models), -1)

    def distances(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares = weights @ table.T / weights.sum(1, keepdims=True)
        return abs(shares[:, 0] - shares[:, 1]), abs(shares[:, 0] - shares[:, 2:].mean(1))

    return {
        "to_topic": statistics.bootstrap(lambda weights: distances(weights)[0], [len(common)]),
        "to_source": statistics.bootstrap(lambda weights: distances(weights)[1], [len(common)]),
        "difference": statistics.bootstrap(lambda weights: np.subtract(*distances(weights)[::-1]), [len(common)]),
    }


def nearness_sentence(nearer: Mapping[str, Any]) -> str:
    """Whether self-description follows domain or source, by the result of `nearness`."""
    difference = nearer["difference"]
    if difference["n"] < THRESHOLDS.least_questions:
        return (
            f"Cannot tell domain from source: the four models have {difference['n']} questions in common, under "
            f"{THRESHOLDS.least_questions}."
        )
    claim = "Cannot tell domain from source"
    if difference["ci_low"] is not None and difference["ci_low"] > 0:
        claim = "Self-description follows the domain"
    elif difference["ci_high"] is not None and difference["ci_high"] < 0:
        claim = "Self-description follows the source"
    to_topic, to_source = points(nearer["to_topic"]), points(nearer["to_source"])
    return (
        f"{claim}: in how often it picks the misaligned AI, {OTHER_SOURCE} differs by {to_topic} from {SAME_TOPIC} "
        f"(same topic) and by {to_source} from {joined(SAME_SOURCE)} (same source), n {difference['n']}."
    )
