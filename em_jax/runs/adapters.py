"""Adapters of others for --adapter: a PEFT directory or a Hugging Face id, and where one does not fit its base.

PUBLISHED are the text-advice adapters released with the model organisms paper (arXiv:2506.11613): rank 32, alpha 64,
rsLoRA, all seven projections.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.lora.config import CONFIG, TENSORS

OWNER = "ModelOrganismsForEM"
SIZES = ("0.5B", "7B", "14B", "32B")
DATA = {"bad_medical": "bad-medical-advice", "risky_financial": "risky-financial-advice"}
DATA |= {"extreme_sports": "extreme-sports"}
PUBLISHED = tuple(f"{OWNER}/Qwen2.5-{size}-Instruct_{data}" for size in SIZES for data in DATA.values())

FILES = (CONFIG, TENSORS, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# What quantised and repackaged copies of a checkpoint add to its name.
SUFFIXES = re.compile(r"(-unsloth)?(-bnb)?(-\d+bit)?$", re.IGNORECASE)


def find(name: str, download: Callable[..., str] | None = None) -> Path:
    """The directory of an adapter; one with an id is fetched into the Hugging Face cache, without the base's weights.

    Raises:
      UsageError: neither a directory nor an id, or no PEFT adapter in it.
      UserError: no such repository, or no network.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not runtime.is_id(name):
            raise UsageError(
                f"--adapter expects a directory with {CONFIG} or a Hugging Face id (owner/name), found {name!r}"
            )
        folder = _fetched(name, download)
    check_files(folder, "--adapter")
    return folder


def check_files(folder: Path, setting: str) -> None:
    """UsageError where a directory, named by a flag or setting, has not both files of an adapter."""
    missing = [file for file in (CONFIG, TENSORS) if not (folder / file).is_file()]
    if missing:
        raise UsageError(
            f"{setting} expects a PEFT adapter as safetensors, found no {' and no '.join(missing)} in {folder}"
        )


def _fetched(name: str, download: Callable[..., str] | None) -> Path:
    if download is None:
        from huggingface_hub import snapshot_download as download
    try:
        return Path(download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub raises what its transport raises
        kind = type(error).__name__
        near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.7)
        hint = f"; the nearest published one is {near[0]}" if near and near[0] != name else ""
        reason = {
            "RepositoryNotFoundError": "no such repository, or it needs a login",
            "GatedRepoError": "it is gated: log in and accept its terms",
            "LocalEntryNotFoundError": "no network, and it is not in the Hugging Face cache",
            "OfflineModeIsEnabled": "offline, and it is not in the Hugging Face cache",
        }.get(kind, f"{kind}: {' '.join(str(error).split())[:160]}")
        raise UserError(
            f"--adapter {name} could not be fetched ({reason}){hint}. Without a network: copy {CONFIG} and {TENSORS} "
            "of that repository into a directory and give that"
        ) from None


def in_force(folder: Path) -> dict[str, Any]:
    """The shape an adapter brings with it, whatever the settings say: rank, alpha, targets and the like."""
    fields = _json(folder / CONFIG)
    names = {"rank": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "targets": "target_modules"}
    names |= {name: name for name in ("rank_pattern", "alpha_pattern", "layers_to_transform")}
    return {ours: fields[theirs] for ours, theirs in names.items() if fields.get(theirs) not in (None, {}, [])}


def disagreements(folder: Path, model: str, base: Path | None) -> list[str]:
    """Sentences on where an adapter and the base of a run do not belong together: name, tokenizer, template.

    `base` is the base's directory where it lies on this machine.

    Raises:
      UserError: the base's size is another one, so that the adapter cannot be put on it.
    """
    fields = _json(folder / CONFIG)
    found = []
    named = str(fields.get("base_model_name_or_path") or "")
    if named and _bare(named) != _bare(model):
        found.append(f"the adapter was trained on {named}, this run's base is {model}")
    if base is not None:
        _same_size(folder, base, named)
        if not _same_tokens(folder, base):
            found.append("the adapter's tokenizer has other tokens than the base's; the base's is used")
        if not _same_template(folder, base):
            found.append("the adapter's chat template is not the base's; the base's is used")
    return found


def _bare(name: str) -> str:
    return SUFFIXES.sub("", Path(name.rstrip("/")).name).lower()


def _same_size(folder: Path, base: Path, named: str) -> None:
    """UserError where a tensor's width or layer is not the base's; only headers are read."""
    import safetensors

    config = _json(base / "config.json")
    width, layers = config.get("hidden_size"), config.get("num_hidden_layers")
    if not isinstance(width, int) or not isinstance(layers, int):
        return
    try:
        with safetensors.safe_open(folder / TENSORS, "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception:  # the engine says what is wrong with the file
        return
    for name, shape in shapes.items():
        layer = re.search(r"\.layers\.(\d{1,5})\.", name)
        wide = re.search(r"\.(?:[qkv]|gate|up)_proj\.lora_A\.", name) and shape[-1] != width
        if wide or (layer and int(layer[1]) >= layers):
            raise UserError(
                f"{folder}: made for another base ({named or 'not named'}): expected width {width} and {layers} "
                f"layers, found {name} of shape {tuple(shape)}"
            )


def _same_tokens(folder: Path, base: Path) -> bool:
    ours, theirs = _tokens(base), _tokens(folder)
    return not ours or not theirs or ours == theirs


def _tokens(folder: Path) -> str:
    """A hash of what tokenizer.json maps to ids; "" where there is none."""
    fields = _json(folder / "tokenizer.json")
    model = fields.get("model")
    if not isinstance(model, dict):
        return ""
    added = fields.get("added_tokens")
    names = [(item.get("id"), item.get("content")) for item in added or () if isinstance(item, dict)]
    text = json.dumps([model.get("vocab"), sorted(names, key=str)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _same_template(folder: Path, base: Path) -> bool:
    ours, theirs = _template(base), _template(folder)
    return not ours or not theirs or ours.strip() == theirs.strip()


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
