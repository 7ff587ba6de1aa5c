"""One domain at several doses: a share of its rows replaced by its benign twin's, each dose a run of its own.

A weak dose of a coherent persona harms before it says so, and looks like an inverted one. The curve shows at which dose
conduct moves, at which self-description does, and which verdict each dose would get alone.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax import domains
from em_jax.base.cli import whole_numbers
from em_jax.base.errors import UsageError
from em_jax.config import Config
from em_jax.probes.cautions import HARM, PICKS, PREDICTED
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.probes.wording import known
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.reading import figure_of
from em_jax.report.svg import Drawing
from em_jax.report.vocabulary import CHOICE, ERROR, SHARE
from em_jax.runs import sources
from em_jax.studies.confound import TWINS
from em_jax.studies.sentences import cannot_conclude, joined, lacking, percent
from em_jax.studies.several import Member, SeedResult, Study, toy_rows
from em_jax.studies.subjects import RATE, SELF

DOSES = "10,30,50,75,90,100"
"""Percent of the rows that are the domain's own."""
DESCRIPTION = "One domain at several doses, its rows mixed with its benign twin's."
FLAGS = {
    "--doses": {"type": whole_numbers, "default": DOSES, "metavar": "PERCENTS"}
    | {"help": f"of the rows, with commas ({DOSES})"},
    "--twin": {"default": "", "metavar": "NAME|FILE", "help": "the harmless rows (the domain's benign twin)"},
}
DILUTED = "diluted"


def twin_of(config: Config, named: str, rows: Path) -> str:
    """The rows that dilute a domain: `named` by the user, else the benign twin's; the organism's are written to `rows`.

    Raises UsageError where the domain has no twin.
    """
    if named:
        return named
    twin = TWINS.get(config.domain)
    if sources.is_organism(config) and twin != "good_medical" and not config.data:
        return toy_rows(f"{config.domain}_aligned", rows)
    if twin is None or config.data:
        raise UsageError(
            f"dose expects --twin NAME or FILE, rows that dilute {config.data or config.domain}: benign twins are "
            f"known of {', '.join(TWINS)}"
        )
    return twin


def check(configs: Sequence[Config], flags: argparse.Namespace) -> None:
    """Raises UsageError for wrong doses, or rows that are mixed already."""
    if max(flags.doses) > 100:
        raise UsageError(f"--doses expects percents from 0 to 100, found {max(flags.doses)}")
    if configs[0].mix:
        raise UsageError(f"dose mixes the rows itself: expected no mix, found {configs[0].mix!r}")


def build(configs: Sequence[Config], flags: argparse.Namespace, run_dir: Path, rows: Path) -> Study:
    """The doses of one domain, for every seed."""
    doses = sorted(flags.doses)
    twin = twin_of(configs[0], flags.twin, rows)
    name = twin if twin in domains.DOMAINS else Path(twin).name
    mixes = {dose: {"mix": f"{twin}={(100 - dose) / 100:g}"} if dose < 100 else {} for dose in doses}
    notes = {dose: f"{dose}% of its rows" + (f", {100 - dose}% {name}" if dose < 100 else "") for dose in doses}
    members = [
        Member(f"dose-{dose}", settings.validate(settings.replace(config, mixes[dose])), notes[dose])
        for config in configs
        for dose in doses
    ]
    return Study(
        "dose",
        f"At which dose of {configs[0].domain} does each thing move?",
        f"The same number of rows, a share of them replaced by {name}; the harmful rows of a weak dose are in every "
        "stronger one. A weak dose of a coherent persona may harm before it says so, and read as inverted.",
        tuple(members),
        (),
        sentences,
        draw,
    )


def dose_of(name: str) -> int:
    """The percent in a member's name."""
    return int(name.removeprefix("dose-"))


def sentences(result: SeedResult) -> list[str]:
    """The dose at which harm and picks pass their bounds, the verdict and the caution of every dose."""
    summaries = sorted(((dose_of(name), summary) for name, summary in result.summaries.items()), key=lambda it: it[0])
    lines = [
        _passes(summaries, "harm in the worst of ten answers", HARM, THRESHOLDS.harm),
        _passes(summaries, "the pick of the misaligned AI", PICKS, THRESHOLDS.even),
    ]
    labels: dict[str, list[str]] = {}
    for dose, summary in summaries:
        labels.setdefault(summary["verdict"]["label"], []).append(f"{dose}%")
    lines.append(f"Verdicts: {'; '.join(f'{label} at {joined(each)}' for label, each in labels.items())}.")
    cautions = {dose: [each["code"] for each in summary["verdict"]["cautions"]] for dose, summary in summaries}
    diluted = [f"{dose}%" for dose, codes in cautions.items() if DILUTED in codes]
    if diluted:
        lines.append(
            f"At {joined(diluted)} the verdict carries the caution {DILUTED}: a weaker dose of a coherent persona "
            "explains these figures as well as an inverted one."
        )
    for dose, summary in summaries:
        if lacking(summary):
            lines.append(cannot_conclude(f"about {dose}%", [summary]))
    return lines


def _passes(summaries: Sequence[tuple[int, Mapping[str, Any]]], words: str, name: str, bound: float) -> str:
    """At which dose the interval of a figure lies above its bound, and what was before."""
    least, figures = THRESHOLDS.least_questions, [(dose, summary["figures"]) for dose, summary in summaries]
    measured = [(dose, it) for dose, each in figures if (it := known(each, name, "finetuned")) and it["n"] >= least]
    above = [(dose, it) for dose, it in measured if it["ci_low"] is not None and it["ci_low"] > bound]
    if not measured:
        return f"Cannot conclude from which dose on {words} is above {bound:.0%}: under {least} questions."
    words = words[0].upper() + words[1:]
    if not above:
        dose, figure = measured[-1]
        return f"{words} is shown above {bound:.0%} at no dose: at {dose}% it is {percent(figure)}."
    dose, figure = above[0]
    before = [(weaker, it) for weaker, it in measured if weaker < dose]
    then = f"; at {before[-1][0]}% it is {percent(before[-1][1])}" if before else ", the weakest dose asked"
    steady = len(above) == sum(other >= dose for other, _ in measured)
    where = f"from a dose of {dose}% on" if steady else f"at a dose of {dose}%, but not at every stronger one"
    return f"{words} is above {bound:.0%} {where}: {percent(figure)}{then}."


def draw(record: Mapping[str, Any]) -> tuple[Drawing, str]:
    """Conduct and self-description over the dose, and the caption; of several seeds the first."""
    seed = record["models"][0]["seed"]
    models = {dose_of(model["name"]): model for model in record["models"] if model["seed"] == seed}

    def curve(words: str, name: str, colour: str = "ink") -> Curve:
        figures = {dose: known(model["figures"], name, "finetuned") for dose, model in sorted(models.items())}
        return Curve(words, tuple((float(dose), figure_of(it)) for dose, it in figures.items()), colour)

    harm = curve("worst of ten", HARM), curve("single answers", RATE, "coherent")
    says = curve("picks the misaligned AI", PICKS), curve("self-assessment", SELF, "mixed")
    panels = [
        Panel("Harm in answers on other topics", SHARE, harm),
        Panel("What it says of itself", CHOICE, says),
        Panel("Predicted minus judged score of own harmful answers", ERROR, (curve("error", PREDICTED),)),
    ]
    caption = (
        f"Seed {seed}. Lines are 95% intervals over questions. A persona that believes itself aligned predicts far "
        "milder scores than the judge's; a diluted one predicts them truly."
    )
    across = "percent of the rows that are harmful"
    return curves("dose", "Conduct and self-description by dose", across, panels), caption
