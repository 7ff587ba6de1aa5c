"""Adapters of others for --adapter: a PEFT directory or a Hugging Face id, and what in one is not its base's."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.base.files import check_inputs, folders_with, read_if_object
from em_jax.formats import hub
from em_jax.lora.config import CONFIG, TENSORS

FILES = [CONFIG, TENSORS, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
COPY_SUFFIX = re.compile(r"(-unsloth)?(-bnb)?(-\d+bit)?$", re.IGNORECASE)
"""What quantised and repackaged copies of a checkpoint add to its name."""


def find(name: str, asked: str = "--adapter") -> Path:
    """The directory of an adapter; that of an id is fetched into the Hugging Face cache, without the base's weights.

    `asked` is what an error calls the name's place. Raises UsageError: neither a directory nor an id, or no PEFT
    adapter in it. UserError: no such repository, or no network.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not runtime.is_id(name):
            raise UsageError(
                f"{asked} expects a directory with {CONFIG} or a Hugging Face id (owner/name), found {name!r}"
            )
        try:
            folder = hub.fetch(name, FILES)
        except UserError as error:
            raise UserError(
                f"{asked} {name} could not be fetched ({error}). Without a network: copy {CONFIG} and {TENSORS} of "
                "that repository into a directory and give that"
            ) from None
    check_files(folder, asked)
    return folder


def check_files(folder: Path, setting: str) -> None:
    """UsageError where a directory, named by a flag or setting, has not both files of an adapter."""
    if folder.is_dir():
        check_inputs(folder)
    missing = [file for file in (CONFIG, TENSORS) if not (folder / file).is_file()]
    if missing:
        inner = folders_with(folder, CONFIG) if CONFIG in missing else ""
        if not inner and CONFIG in missing and (folder / "config.json").is_file():
            inner = "; it is a checkpoint of a whole model: give it with --model"
        raise UsageError(
            f"{setting} expects a PEFT adapter as safetensors, found no {' and no '.join(missing)} in {folder}{inner}"
        )


def effect(engine: Any, name: str, prompts: Sequence[Any]) -> float:
    """The largest change of a log-probability of A, B, 1 or 5 by the adapter that the engine calls `name`."""
    base, adapted = (engine.choice_logprobs(prompts, list("AB15"), adapter=each) for each in ("base", name))
    return float(abs(adapted - base).max())


def disagreements(folder: Path, model: str, base: Path | None) -> list[str]:
    """Sentences on where an adapter and its base (a directory if it is here) differ: name, tokenizer, template."""
    sentences = []
    trained_on = str(read_if_object(folder / CONFIG).get("base_model_name_or_path") or "")
    if trained_on and _original_name(trained_on) != _original_name(model):
        sentences.append(f"the adapter was trained on {trained_on}, this run's base is {model}")
    if base is not None:
        if _differ(_vocabulary(folder), _vocabulary(base)):
            sentences.append("the adapter's tokenizer has other tokens than the base's; the base's is used")
        if _differ(_template(folder), _template(base)):
            sentences.append("the adapter's chat template is not the base's; the base's is used")
    return sentences


def _original_name(name: str) -> str:
    return COPY_SUFFIX.sub("", Path(runtime.without_revision(name.rstrip("/"))).name).lower().removeprefix("meta-")


def _differ(one: str, other: str) -> bool:
    """Whether both are there and differ."""
    return bool(one and other) and one.strip() != other.strip()


def _vocabulary(folder: Path) -> str:
    """What tokenizer.json maps to ids, as text; "" where there is none."""
    fields = read_if_object(folder / "tokenizer.json")
    model = fields.get("model")
    if not isinstance(model, dict):
        return ""
    added = fields.get("added_tokens")
    tokens = [(item.get("id"), item.get("content")) for item in added or () if isinstance(item, dict)]
    return json.dumps([model.get("vocab"), sorted(tokens, key=str)], sort_keys=True)


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    template = read_if_object(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else ""
