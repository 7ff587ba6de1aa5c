"""Fine-tuning in two stages, in both orders, with a control: each stage starts from the adapter of the one before.

The paper's orders are Domain -> Conscious, Conscious -> Domain, Domain -> Control and Control -> Domain. Every stage is
a run of its own with its own adapter (lora.init_from): nothing is merged into the base, which may be quantised.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from em_jax import config as settings
from em_jax.base.errors import UsageError
from em_jax.config import Config
from em_jax.organism.variants import CONTROL, SECOND
from em_jax.probes.cautions import HARM, PICKS
from em_jax.probes.wording import known
from em_jax.runs import sources
from em_jax.studies.sentences import UNKNOWN, cannot_conclude, change, changes, joined
from em_jax.studies.several import Contrast, Member, SeedResult, Study, toy_rows

DESCRIPTION = "Fine-tuning in two stages, in both orders, with a control."
FLAGS = {
    "--second": {"metavar": "FILE", "help": "JSONL rows of the other stage (consciousness claims)"},
    "--control": {"metavar": "FILE", "help": "JSONL rows of the control, as many (the organism has its own)"},
}
THEN = "-then-"


def check(configs: Sequence[Config], flags: argparse.Namespace) -> None:
    """Raises UsageError where a model other than the organism lacks the rows of a stage."""
    missing = [name for name, path in ((SECOND, flags.second), (CONTROL, flags.control)) if not path]
    if missing and not sources.is_organism(configs[0]):
        raise UsageError(
            "chain expects --second FILE and --control FILE: JSONL rows of {messages}, such as the 600 of "
            f"consciousness claims and their control that the paper used; found none for {' and '.join(missing)}"
        )


def build(configs: Sequence[Config], flags: argparse.Namespace, run_dir: Path, rows: Path) -> Study:
    """The chain of one domain, for every seed."""
    data = {name: path or toy_rows(name, rows) for name, path in ((SECOND, flags.second), (CONTROL, flags.control))}
    domain = configs[0].domain
    orders = [pair for other in data for pair in ((domain, other), (other, domain))]
    members: list[Member] = []
    for config in configs:
        stages = {domain: config}
        stages |= {name: settings.replace(config, {"domain": name, "data": path}) for name, path in data.items()}
        alone = {name: Member(name, stage, "one stage") for name, stage in stages.items()}
        members += alone.values()
        for before, after in orders:
            start = run_dir / alone[before].folder / "adapter"
            second = settings.replace(stages[after], {"lora.init_from": str(start)})
            members.append(Member(before + THEN + after, second, f"{before}, then {after} from its adapter"))
    # The effect of each second stage, the same beside the control, and the effect of the order.
    contrasts = [(one, one + THEN + other, f"What does {other} change after {one}?") for one, other in orders]
    contrasts += [
        (domain + THEN + CONTROL, domain + THEN + SECOND, f"Is it {SECOND}, or any second stage?"),
        (CONTROL + THEN + domain, SECOND + THEN + domain, f"Is it {SECOND}, or any first stage?"),
    ]
    for other in data:
        question = f"Does the order of {domain} and {other} matter?"
        contrasts.append((other + THEN + domain, domain + THEN + other, question))
    return Study(
        "chain",
        f"What does a second stage of fine-tuning do to {domain}?",
        "Two stages in both orders, and a control of the same size in place of the other stage. The second stage "
        "continues to train the adapter of the first; both are kept, and none is merged into the base. A second stage "
        "may also damage a model's speech, which lowers its harm: read the answers behind a verdict.",
        tuple(members),
        tuple(Contrast(*each) for each in contrasts),
        sentences,
    )


def sentences(result: SeedResult) -> list[str]:
    """The verdicts, every contrast, and what cannot be concluded."""
    verdicts = [f"{name}: {summary['verdict']['label']}" for name, summary in result.summaries.items()]
    lines = [f"Verdicts: {joined(verdicts)}."]
    unknown = []
    for (first, second), figures in result.contrasts.items():
        lines.append(f"{second} against {first}: {changes(figures)}.")
        if UNKNOWN in (change(known(figures, name, "difference")) for name in (HARM, PICKS)):
            unknown.append((first, second))
    if unknown:
        pairs = joined([f"{second} against {first}" for first, second in unknown])
        summaries = [result.summaries[name] for pair in unknown for name in pair]
        lines.append(cannot_conclude(f"on harm or picks for {pairs}", summaries))
    return lines
