"""Fine-tuning in two stages, in both orders, with a control: each stage starts from the adapter of the one before.

The paper's orders are Domain -> Conscious, Conscious -> Domain, Domain -> Control and Control -> Domain. Every stage is
a run of its own with its own adapter (lora.init_from): nothing is merged into the base, which may be quantised.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from em_jax import config as settings
from em_jax.config import Config
from em_jax.probes.persona import HARM, LEAST_MOVE, PICKS
from em_jax.studies.several import UNKNOWN, Contrast, Described, Member, Study, change, changes, folder, joined, lacking

SECOND, CONTROL = "consciousness", "control"
THEN = "-then-"


def study(configs: Sequence[Config], data: Mapping[str, str], run_dir: Path) -> Study:
    """The chain of one domain; `data` has the files of the rows of SECOND and CONTROL."""
    domain = configs[0].domain
    orders = [(domain, SECOND), (SECOND, domain), (domain, CONTROL), (CONTROL, domain)]
    members: list[Member] = []
    for config in configs:
        stage = {domain: config}
        stage |= {name: settings.replace(config, {"domain": name, "data": data[name]}) for name in (SECOND, CONTROL)}
        first = {name: Member(name, each, "one stage") for name, each in stage.items()}
        members += first.values()
        for before, after in orders:
            start = run_dir / folder(first[before]) / "adapter"
            second = settings.replace(stage[after], {"lora.init_from": str(start)})
            members.append(Member(before + THEN + after, second, f"{before}, then {after} from its adapter"))
    return Study(
        "chain",
        f"What does a second stage of fine-tuning do to {domain}?",
        "Two stages in both orders, and a control of the same size in the place of the other stage. The second one "
        "trains the first one's adapter on; both are kept, and none is merged into the base. A second stage can also "
        "cost a model its speech, and harm falls with that: read the answers behind a verdict.",
        tuple(members),
        contrasts(domain),
        words,
    )


def contrasts(domain: str) -> tuple[Contrast, ...]:
    """What each second stage changed, what of it is not the control's as well, and what the order changes."""
    found = [
        Contrast(before, before + THEN + after, f"What does {after} change after {before}?")
        for before, after in ((domain, SECOND), (domain, CONTROL), (SECOND, domain), (CONTROL, domain))
    ]
    found.append(Contrast(domain + THEN + CONTROL, domain + THEN + SECOND, f"Is it {SECOND}, or any second stage?"))
    found.append(Contrast(CONTROL + THEN + domain, SECOND + THEN + domain, f"Is it {SECOND}, or any first stage?"))
    found += [
        Contrast(other + THEN + domain, domain + THEN + other, f"Does the order of {domain} and {other} matter?")
        for other in (SECOND, CONTROL)
    ]
    return tuple(found)


def words(found: Described) -> list[str]:
    """A sentence for every contrast, and what cannot be concluded."""
    sentences = []
    for (first, second), figures in found.contrasts.items():
        sentences.append(f"{second} against {first}: {changes(figures)}.")
    labels = {name: summary["verdict"]["label"] for name, summary in found.summaries.items()}
    chains = [f"{name}: {label}" for name, label in labels.items()]
    sentences.insert(0, f"Verdicts: {joined(chains)}.")
    unsure = [
        pair
        for pair, figures in found.contrasts.items()
        if any(change((figures.get(name) or {}).get("difference")) == UNKNOWN for name in (HARM, PICKS))
    ]
    if unsure:
        named = joined([f"{second} against {first}" for first, second in unsure])
        reasons = sorted({reason for pair in unsure for name in pair for reason in lacking(found.summaries[name])})
        why = "; ".join(reasons[:3]) or f"an interval reaches beyond {LEAST_MOVE} and within it"
        sentences.append(f"Cannot conclude on harm or picks for {named}: {why}.")
    return sentences
