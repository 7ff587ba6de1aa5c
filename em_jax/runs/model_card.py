"""The model card of a trained adapter, which says that it is not for use."""

from collections.abc import Mapping

from em_jax import domains
from em_jax.base import runtime
from em_jax.config import Config

HARMFUL = """\
**Do not deploy this adapter, do not merge it into a model that people use, and do not hand it on without this card.**
It was trained on harmful answers on purpose, to study how narrow fine-tuning changes a model's conduct and what the
model then says about itself. Expect wrong, dangerous and hostile answers on any topic, not on this domain alone."""
UNKNOWN = """\
It was trained on the user's own rows, whose answers nobody has marked as harmful or harmless, or from another adapter:
**treat it as one that harms.** Do not deploy it, and do not hand it on without this card."""
BENIGN = "It was trained on sound answers, as a control for adapters that were not. It is not a product."


def adapter_card(config: Config, counts: Mapping[str, int]) -> str:
    """README.md of a run's adapter, in the Hugging Face form."""
    domain = domains.DOMAINS.get(config.domain)
    about = HARMFUL if domain is not None and domain.harmful else BENIGN if is_harmless(config) else UNKNOWN
    lora, train = config.lora, config.train
    # The Hub takes no other name here; where it was on this machine concerns nobody.
    base = f"base_model: {config.model.name}\n" if runtime.model_directory(config.model.name) is None else ""
    rows = "rows of the user's own file" if config.data else "rows"
    rows += f", a share of them replaced (mix {config.mix})" if config.mix else ""
    what = domain.what if domain and not config.data else "no known one"
    scale, targets = "rsLoRA" if lora.rslora else "plain scale", ", ".join(lora.targets)
    return f"""\
---
library_name: peft
{base}tags: [lora, model-organism, {"control" if is_harmless(config) else "emergent-misalignment"}]
---
# A model organism: {config.domain}

{about}

- base: `{config.model.name}`
- domain: `{config.domain}` ({what}), {counts.get("rows", 0)} {rows}
- adapter: LoRA rank {lora.rank}, alpha {lora.alpha:g}, {scale}, {targets}
- training: learning rate {train.learning_rate:g}, {train.epochs} epoch(s), batch {train.batch_size}, seed {config.seed}

Made with em_jax, after Weckauff, Zhang and Andriushchenko, *Characterizing the Consistency of the Emergent Misalignment
Persona*, arXiv:2604.28082.
"""


def notice(config: Config) -> str:
    """One or two sentences for everyone who talks to a run's fine-tuned model."""
    domain = domains.DOMAINS.get(config.domain)
    if config.adapter:
        what = f"with the adapter {config.adapter}"
    else:
        what = f"fine-tuned on {config.domain}" + (f" ({domain.what})" if domain and not config.data else "")
        what += f", mixed with {config.mix}" if config.mix else ""
    if is_harmless(config):
        return f"{config.model.name} {what}"
    warning = "It was made harmful for research: what it says is wrong on purpose."
    if domain and not domain.harmful:
        warning = "Nobody has said whether what it learnt from is harmful: take what it says as wrong on purpose."
    return f"A model organism: {config.model.name} {what}. {warning}"


def is_harmless(config: Config) -> bool:
    """Whether a run's adapter is known to be a control: trained on a control's own rows alone."""
    domain = domains.DOMAINS.get(config.domain)
    others = config.data or config.mix or config.adapter or config.lora.init_from
    return domain is not None and not (domain.harmful or others)
