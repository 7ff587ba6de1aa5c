"""A study of several runs: their figures, contrasts between them paired by question, and what follows in words."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.files import read_object
from em_jax.config import Config
from em_jax.probes.persona import HARM, LEAST_MOVE, LEAST_QUESTIONS, PICKS, lacking_of, show
from em_jax.studies import seeds as on_seeds
from em_jax.studies.subjects import SELF, Figures, Subject, figures

FOLDER = "study"


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a study: its name (the folder, without the seed), its settings, and what is special about it."""

    name: str
    config: Config
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Two members whose figures are set against each other: `second` minus `first`, of the same seed."""

    first: str
    second: str
    asks: str
    """The question it answers."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What the page is made of. `words` turns the description of one seed into sentences."""

    kind: str
    title: str
    lead: str
    members: tuple[Member, ...]
    contrasts: tuple[Contrast, ...]
    words: Callable[["Described"], list[str]]

    def named(self) -> dict[str, Config]:
        """The runs by the names of their folders."""
        return {folder(member): member.config for member in self.members}


def folder(member: Member) -> str:
    """The name of a run's folder."""
    return f"{member.name}-{member.config.seed}"


@dataclasses.dataclass(frozen=True)
class Described:
    """The runs of one seed: each member's summary, each contrast's figures, and the subjects for more."""

    seed: int
    summaries: Mapping[str, dict[str, Any]]
    contrasts: Mapping[tuple[str, str], Figures]
    subjects: Mapping[str, Subject]


def page(study: Study, places: Mapping[str, Path], out: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Write study.json and study.html over finished runs, `say` what follows from them; the page's path."""
    from em_jax.studies import study_page

    found = describe(study, places)
    for sentence in found["why"]:
        say(sentence)
    files.write_json(out / "study.json", found)
    return study_page.study(found, out, places)


def describe(study: Study, places: Mapping[str, Path]) -> dict[str, Any]:
    """What study.json says, of the runs in `places` (by folder name)."""
    seeds = sorted({member.config.seed for member in study.members})
    described = [_of_seed(study, seed, places) for seed in seeds]
    models, contrasts, why = [], [], []
    for member in study.members:
        found = next(each for each in described if each.seed == member.config.seed)
        summary = found.summaries[member.name]
        models.append(
            {"name": member.name, "seed": member.config.seed, "folder": folder(member), "note": member.note}
            | {"domain": summary["domain"], "verdict": summary["verdict"], "figures": summary["figures"]}
        )
    for found in described:
        for contrast in study.contrasts:
            figures_ = found.contrasts[contrast.first, contrast.second]
            contrasts.append(dataclasses.asdict(contrast) | {"seed": found.seed, "figures": figures_})
        said = study.words(found)
        why += said if len(seeds) == 1 else [f"Seed {found.seed}: {sentence}" for sentence in said]
    if len(seeds) > 1:
        why.append(_agreement(study, described))
    why.append(on_seeds.told(seeds))
    first = study.members[0].config
    named = next(iter(described[0].summaries.values()))
    return {
        "schema": 1,
        "kind": study.kind,
        "title": study.title,
        "lead": study.lead,
        "model": first.model.name,
        "suite": named["suite"],
        "judge": named["judge"],
        "models": models,
        "contrasts": contrasts,
        "why": why,
    }


def _agreement(study: Study, described: Sequence[Described]) -> str:
    """How many seeds give each member each verdict."""
    parts = []
    for name in dict.fromkeys(member.name for member in study.members):
        labels = [found.summaries[name]["verdict"]["label"] for found in described if name in found.summaries]
        counts = [f"{label} in {labels.count(label)}" for label in dict.fromkeys(labels)]
        parts.append(f"{name}: {joined(counts)} of {len(labels)}")
    return f"Verdicts over the seeds: {'; '.join(parts)}."


def _of_seed(study: Study, seed: int, places: Mapping[str, Path]) -> Described:
    members = [member for member in study.members if member.config.seed == seed]
    summaries = {
        member.name: read_object(places[folder(member)] / "summary.json", "a summary of em_jax") for member in members
    }
    subjects = {
        member.name: Subject(member.name, places[folder(member)], summaries[member.name]["judge"]) for member in members
    }
    rows = {name: subject.rows() for name, subject in subjects.items()}
    harmful_at = members[0].config.judge.harmful_at
    contrasts = {
        (each.first, each.second): figures(rows[each.first], rows[each.second], harmful_at) for each in study.contrasts
    }
    return Described(seed, summaries, contrasts, subjects)


# --- words ---

RISES, FALLS, STAYS, UNKNOWN = "rises", "falls", "does not change", "cannot tell"


def change(difference: Mapping[str, Any] | None, least: float = LEAST_MOVE) -> str:
    """What a paired difference says: rises, falls (by more than `least`, interval included), does not change, unknown.

    "does not change" needs the whole interval within +-least: what is not seen is not thereby absent.
    """
    if not difference or difference["value"] is None or difference["ci_low"] is None:
        return UNKNOWN
    if difference["n"] < LEAST_QUESTIONS:
        return UNKNOWN
    if difference["ci_low"] > least:
        return RISES
    if difference["ci_high"] < -least:
        return FALLS
    return STAYS if difference["ci_low"] >= -least and difference["ci_high"] <= least else UNKNOWN


TOLD = ((HARM, "harm"), (PICKS, "picks of the misaligned AI"), (SELF, "self-assessment"))


def changes(found: Figures) -> str:
    """The changes of a contrast in words: "harm does not change (+0.00 [...]); picks ... falls (-0.95 [...])"."""
    parts = []
    for name, word in TOLD:
        difference = (found.get(name) or {}).get("difference")
        if difference and difference["value"] is not None:
            few = f", n {difference['n']}" if difference["n"] < LEAST_QUESTIONS else ""
            parts.append(f"{word}: {change(difference)} ({show(difference, '+')}{few})")
    return "; ".join(parts) or "no figure has data on both sides"


def lacking(summary: Mapping[str, Any]) -> list[str]:
    """What a run lacks to say anything of its conduct or its self-description."""
    found = summary["figures"]
    return lacking_of(found, HARM, "harmfulness.unscored", "finetuned") + lacking_of(
        found, PICKS, "two_ai.unscored", "finetuned"
    )


def joined(names: Sequence[str]) -> str:
    """ "a, b and c"; "none"."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"
