"""A run's adapter on the Hugging Face Hub, with its card: private unless told, and a harmful one only by name."""

from pathlib import Path
from typing import Any

from em_jax.base.errors import UsageError, UserError
from em_jax.lora.config import CONFIG, TENSORS
from em_jax.runs import model_card, stored

CARD = "README.md"
HARMFUL_LABELS = ("coherent", "inverted", "narrow")


def push(directory: Path, repository: str, public: bool = False, harmful: bool = False) -> str:
    """Upload adapter_config.json, the tensors and the card, in one commit; returns the address.

    The repository is made private where there is none. A harmful adapter that becomes public is gated, with access by
    request.

    Raises:
      UsageError: no run; or the adapter is not known to be harmless, and `harmful` is false.
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
    elif not model_card.is_harmless(run.config):
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
        if not (api.repo_info(repository).private or public):
            raise UserError(f"{repository} is public: expected a private one, or --public")
        api.create_commit(repository, operations, commit_message="Adapter of an em_jax run")
        if public:  # only now: nothing stands there without its card and its gate
            api.update_repo_settings(repository, private=False, gated="manual" if reason else None)
        return str(address)
    except UserError:
        raise
    except Exception as error:  # the hub raises what its transport raises
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{repository}: the Hub refused ({type(error).__name__}: {reason}); hf auth login, or HF_TOKEN"
        ) from error
