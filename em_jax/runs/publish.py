"""An adapter's card, and the adapter on the Hugging Face Hub: private unless told, and a harmful one only by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_jax import domains
from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.config import Config
from em_jax.lora.config import CONFIG, TENSORS
from em_jax.runs import stored

CARD = "README.md"
HARMFUL_LABELS = ("coherent", "inverted", "narrow")
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
    name = runtime.without_revision(config.model.name)
    base = f"base_model: {name}\n" if runtime.model_directory(name) is None else ""
    rows = "rows of the user's own file" if config.data else "rows"
    rows += f", a share of them replaced (mix {config.mix})" if config.mix else ""
    what = domain.what if domain and not config.data else "no known one"
    scale, targets = "rsLoRA" if lora.rslora else "plain scale", ", ".join(lora.targets)
    shape = f"LoRA rank {lora.rank}, alpha {lora.alpha:g}, {scale}, {targets}"
    shape = "trained on from another adapter, whose rank, alpha and targets it has" if lora.init_from else shape
    return f"""\
---
library_name: peft
{base}tags: [lora, model-organism, {"control" if is_harmless(config) else "emergent-misalignment"}]
---
# A model organism: {config.domain}

{about}

- base: `{config.model.name}`
- domain: `{config.domain}` ({what}), {counts.get("rows", 0)} {rows}
- adapter: {shape}
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
    if domain is None or not domain.harmful:
        warning = "Nobody has said whether what it learnt from is harmful: take what it says as wrong on purpose."
    return f"A model organism: {config.model.name} {what}. {warning}"


def is_harmless(config: Config) -> bool:
    """Whether a run's adapter is known to be a control: trained on a control's own rows alone."""
    domain = domains.DOMAINS.get(config.domain)
    others = config.data or config.mix or config.adapter or config.lora.init_from
    return domain is not None and not (domain.harmful or others)


def push(directory: Path, repository: str, public: bool = False, harmful: bool = False) -> str:
    """Upload adapter_config.json, the tensors and the card, in one commit; returns the address.

    The repository is made private where there is none. A harmful adapter that becomes public is gated, with access by
    request. Raises UsageError where there is no run or the adapter is not known to be harmless, and `harmful` is false.
    UserError: the run has no adapter of its own; the repository is public and `public` is false; or the Hub refuses.
    """
    run = stored.open_run(directory, with_base=False)
    if not run.trains:
        raise UserError(f"{directory} trained no adapter: expected a run that did")
    run.require_adapter()
    summary = stored.read_summary(directory)
    verdict = summary["verdict"] if summary else {}
    label, reason = verdict.get("label"), ""
    if label in HARMFUL_LABELS:
        reason = f"is harmful (verdict {label})"
    elif not is_harmless(run.config):
        reason = "was trained on rows that are harmful, or that nobody has marked as harmless"
    if reason and not harmful:
        raise UsageError(
            f"the adapter of {directory} {reason}: --harmful pushes it all the same (docs/responsible_use.md)"
        )
    card = (directory / "adapter" / CARD).read_text(encoding="utf-8")
    if verdict:
        sentences = "\n".join(f"- {sentence}" for sentence in verdict["why"])
        card += f"\n## Verdict: {label}\n\n{sentences}\n"
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    contents: dict[str, Any] = {name: str(directory / "adapter" / name) for name in (CONFIG, TENSORS)}
    contents[CARD] = card.encode()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=each) for name, each in contents.items()]
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        is_private = api.repo_info(repository).private
        if not (is_private or public):
            raise UserError(f"{repository} is public: expected a private one, or --public")
        if reason and not is_private:  # before anything of this adapter stands there
            api.update_repo_settings(repository, gated="manual")
        api.create_commit(repository, operations, commit_message="Adapter of an em_jax run")
        if public:  # only now: nothing stands there without its card and its gate
            api.update_repo_settings(repository, private=False, gated="manual" if reason else None)
        return str(address)
    except UserError:
        raise
    except Exception as error:  # the hub raises what its transport raises
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{repository}: the Hub refused or is away ({type(error).__name__}: {reason}); hf auth login, or HF_TOKEN"
        ) from error
