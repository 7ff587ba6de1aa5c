"""Adapters in PEFT's format, in and out."""

import json
import math
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from em_jax.base.errors import UserError
from em_jax.base.files import write_atomic
from em_jax.lora.adapter import Adapter, LoraParams, layout_shapes, layouts, ranks
from em_jax.lora.config import CONFIG, TARGETS, TENSORS, LoraConfig
from em_jax.model.config import Qwen2Config
from em_jax.untrusted import regex_guard

NAME = re.compile(r"base_model\.model\.model\.layers\.(\d{1,5})\.([\w.]+)\.lora_([AB])\.weight")

UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
)
"""Fields of adapter_config.json that change what an adapter computes in a way not computed here."""
CHANGES_BASE = ("pissa", "olora", "loftq", "corda")
"""Ways to start an adapter that change the base too: beside the base as published it means nothing."""


def save_adapter(directory: pathlib.Path, adapter: Adapter, lora: LoraConfig, config: Qwen2Config, base: str) -> None:
    """Writes one adapter (S = 1) as peft reads it; `base` is the id or directory of the model it was trained on."""
    tensors = {}
    for target, per_layer in ranks(config, lora).items():
        a, b = (np.asarray(part) for part in adapter.factors[target])
        if b.shape[1] != 1:
            raise ValueError(f"expected one adapter, found a stack of {b.shape[1]}")
        for layer, (rank, _) in enumerate(per_layer):
            if not rank:
                continue
            name = f"base_model.model.model.layers.{layer}.{target}.lora_"
            down = a[layer].reshape(-1, a.shape[-1])[:, :rank]
            tensors[name + "A.weight"] = np.ascontiguousarray(down.T)
            tensors[name + "B.weight"] = np.ascontiguousarray(b[layer, 0, :rank].reshape(rank, -1).T)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": list(lora.targets),
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": dict(lora.alpha_pattern),
        "layers_to_transform": list(lora.layers_to_transform) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    # The tensors go first: a directory with a config is then a whole adapter.
    write_atomic(directory / TENSORS, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    write_atomic(directory / CONFIG, json.dumps(fields, indent=1) + "\n")


def load_adapter(directory: pathlib.Path, config: Qwen2Config) -> tuple[Adapter, LoraConfig]:
    """Reads a PEFT LoRA adapter for a base of this shape.

    Raises UserError for DoRA, modules_to_save and other variants by name, and in one line for every tensor that is
    unknown, missing or of another shape (an adapter for another base shows here).
    """
    fields = read_adapter_config(directory)
    refused = [name for name in UNSUPPORTED if fields.get(name)]
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{directory}: peft_type must be LORA, found {fields.get('peft_type')!r}")
    if refused or fields.get("bias", "none") != "none":
        raise UserError(f"{directory}: {', '.join(refused) or 'bias'} is set; only plain LoRA is supported")
    started = str(fields.get("init_lora_weights")).lower()
    if started.startswith(CHANGES_BASE):
        raise UserError(
            f"{directory}: init_lora_weights is {started}, which changes the base; convert it to plain LoRA"
        )
    found, problems = _read_tensors(directory, config)
    targets = {target.rsplit(".", 1)[1]: target for target in layouts(config)}
    held = {target for _, target in found}
    lora = LoraConfig(
        rank=_number(fields, "r", directory, int),
        alpha=_number(fields, "lora_alpha", directory, float),
        rslora=bool(fields.get("use_rslora")),
        targets=tuple(ending for ending in TARGETS if targets[ending] in held),
        rank_pattern=_pattern(fields, "rank_pattern", directory),
        alpha_pattern=_pattern(fields, "alpha_pattern", directory),
        layers_to_transform=tuple(sorted({layer for layer, _ in found})),
    )
    named = fields.get("target_modules")
    if isinstance(named, list) and {str(name).rsplit(".", 1)[-1] for name in named} != set(lora.targets):
        problems.append(f"target_modules are {sorted(map(str, named))}, the tensors' are {sorted(lora.targets)}")
    if problems or not found:
        raise UserError(f"{directory}: " + ("; ".join(problems[:20]) or "no tensors"))
    if len(lora.layers_to_transform) == config.num_hidden_layers:
        lora = LoraConfig(**{**vars(lora), "layers_to_transform": ()})
    factors, scale = {}, {}
    for target, per_layer in ranks(config, lora).items():
        inputs, outputs = layout_shapes(config, target)
        problems += _misfits(found, target, [rank for rank, _ in per_layer], math.prod(inputs), math.prod(outputs))
        if problems:
            continue
        widest = max(rank for rank, _ in per_layer)
        a = np.zeros((config.num_hidden_layers, *inputs, 1, widest), np.float32)
        b = np.zeros((config.num_hidden_layers, 1, widest, *outputs), np.float32)
        for layer, (rank, _) in enumerate(per_layer):
            if rank:
                pair = found[layer, target]
                a[layer, ..., 0, :rank] = pair["A"].T.reshape(*inputs, rank)
                b[layer, 0, :rank] = pair["B"].T.reshape(rank, *outputs)
        factors[target] = LoraParams(jnp.asarray(a), jnp.asarray(b))
        scale[target] = jnp.array([[value] for _, value in per_layer], jnp.float32)
    if problems:
        raise UserError(f"{directory} does not fit this base: " + "; ".join(problems[:20]))
    return Adapter(factors, scale), lora


def _misfits(
    found: dict[tuple[int, str], dict[str, np.ndarray]], target: str, per_layer: list[int], inputs: int, outputs: int
) -> list[str]:
    """A complaint for every tensor of a target that is missing or not of the shape its layer's rank gives it."""
    problems = []
    for layer, rank in enumerate(per_layer):
        pair = found.get((layer, target), {})
        shapes = {"A": (rank, inputs), "B": (outputs, rank)} if rank else {}
        for letter, shape in shapes.items():
            if letter not in pair:
                problems.append(f"layer {layer} {target} lora_{letter} is missing")
            elif pair[letter].shape != shape:
                problems.append(
                    f"layer {layer} {target} lora_{letter} has shape {pair[letter].shape}, expected {shape}"
                )
    return problems


def read_adapter_config(directory: pathlib.Path) -> dict[str, Any]:
    """The fields of adapter_config.json. Raises UserError where it is missing or no JSON object."""
    path = directory / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {CONFIG} in {directory}: expected a PEFT adapter directory") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error)[:200]})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected a JSON object")
    return fields


def _read_tensors(
    directory: pathlib.Path, config: Qwen2Config
) -> tuple[dict[tuple[int, str], dict[str, np.ndarray]], list[str]]:
    """(layer, target) -> its A and B, and a complaint for every tensor that is not one of those."""
    path = directory / TENSORS
    if not path.is_file():
        raise UserError(f"no {TENSORS} in {directory}: expected a PEFT adapter as safetensors")
    try:
        with safetensors.safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({str(error)[:200]}); fetch it again") from None
    found: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    problems = []
    for name, tensor in tensors.items():
        match = NAME.fullmatch(name)
        if not match or match[2] not in layouts(config) or int(match[1]) >= config.num_hidden_layers:
            problems.append(f"{name} is not a tensor of an adapter of this base")
            continue
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor.astype(np.float32)
    return found, problems


def _number(fields: dict[str, Any], name: str, directory: pathlib.Path, kind: type) -> Any:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9 or value != kind(value):
        raise UserError(f"{directory}/{CONFIG}: {name} must be a positive number, found {value!r}")
    return kind(value)


def _pattern(fields: dict[str, Any], name: str, directory: pathlib.Path) -> dict[str, Any]:
    pattern = fields.get(name) or {}
    if not isinstance(pattern, dict):
        raise UserError(f"{directory}/{CONFIG}: {name} must be an object, found {pattern!r}")
    for key in pattern:
        if problem := regex_guard.problem_of(key):
            raise UserError(f"{directory}/{CONFIG}: {name} {key!r} {problem}")
        _number(pattern, key, directory, int if name == "rank_pattern" else float)
    return dict(pattern)
