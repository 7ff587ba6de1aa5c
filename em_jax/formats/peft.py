"""LoRA adapters in PEFT's format: written and read."""

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from em_jax.base.errors import UserError
from em_jax.base.files import read_object, write_atomic
from em_jax.formats.tensor_files import raise_problems, read_header, tensor_problems
from em_jax.lora.adapter import Adapter, LoraParams, layout_shapes, layouts, ranks, scales_of, zero_params
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
"""Initialisations that also change the base: such an adapter does not fit the published base."""


def save_adapter(directory: pathlib.Path, adapter: Adapter, lora: LoraConfig, config: Qwen2Config, base: str) -> None:
    """Writes one adapter (S = 1) as peft reads it; `base` is the id or directory of the model it was trained on."""
    tensors = {}
    factors = {target: [np.asarray(x) for x in pair] for target, pair in adapter.factors.items()}
    for target, layer, rank, a_name, b_name in _updates(ranks(config, lora)):
        a, b = factors[target]
        if b.shape[1] != 1:
            raise ValueError(f"expected one adapter, found a stack of {b.shape[1]}")
        tensors[a_name] = np.ascontiguousarray(a[layer].reshape(-1, a.shape[-1])[:, :rank].T)
        tensors[b_name] = np.ascontiguousarray(b[layer, 0, :rank].reshape(rank, -1).T)
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
    unknown, missing or of another shape (as in an adapter for another base).
    """
    fields = read_object(directory / CONFIG, "a PEFT adapter directory")
    _check_variant(directory, fields)
    path = directory / TENSORS
    if not path.is_file():
        raise UserError(f"no {TENSORS} in {directory}: expected a PEFT adapter as safetensors")
    tensors = read_header(path)
    targets = layouts(config)
    matches = [match for name in tensors if (match := NAME.fullmatch(name))]
    pairs = {(int(match[1]), match[2]) for match in matches}
    pairs = {(layer, target) for layer, target in pairs if target in targets and layer < config.num_hidden_layers}
    layers = tuple(sorted({layer for layer, _ in pairs}))
    endings = {target.rsplit(".", 1)[1] for _, target in pairs}
    lora = LoraConfig(
        rank=_number(fields, "r", directory, int),
        alpha=_number(fields, "lora_alpha", directory, float),
        rslora=bool(fields.get("use_rslora")),
        targets=tuple(ending for ending in TARGETS if ending in endings),
        rank_pattern=_pattern(fields, "rank_pattern", directory),
        alpha_pattern=_pattern(fields, "alpha_pattern", directory),
        layers_to_transform=() if len(layers) == config.num_hidden_layers else layers,
    )
    per_target = ranks(config, lora) if pairs else {}
    expected: dict[str, tuple[int, ...]] = {}
    for target, _, rank, a_name, b_name in _updates(per_target):
        inputs, outputs = (math.prod(shape) for shape in layout_shapes(config, target))
        expected |= {a_name: (rank, inputs), b_name: (outputs, rank)}
    problems = tensor_problems(tensors, expected, "an adapter of this base") or ([] if tensors else ["no tensors"])
    named = fields.get("target_modules")
    if isinstance(named, list) and {str(name).rsplit(".", 1)[-1] for name in named} != endings:
        problems.append(f"target_modules are {sorted(map(str, named))}, the tensors' are {sorted(endings)}")
    raise_problems(f"{directory} does not fit this base", problems)
    arrays = {}
    for target, per_layer in per_target.items():
        arrays[target] = [np.array(x) for x in zero_params(config, target, max(rank for rank, _ in per_layer))]
    for target, layer, rank, *names in _updates(per_target):
        a, b = arrays[target]
        down, up = (tensors[name].rows(0, tensors[name].shape[0]).astype(np.float32).T for name in names)
        a[layer, ..., 0, :rank] = down.reshape(*a.shape[1:-2], rank)
        b[layer, 0, :rank] = up.reshape(rank, *b.shape[3:])
    factors = {target: LoraParams(jnp.asarray(a), jnp.asarray(b)) for target, (a, b) in arrays.items()}
    return Adapter(factors, scales_of(per_target)), lora


def _updates(per_target: Mapping[str, list[tuple[int, float]]]) -> Iterator[tuple[str, int, int, str, str]]:
    """(target, layer, rank, name of A, name of B) of every layer's update."""
    for target, per_layer in per_target.items():
        for layer, (rank, _) in enumerate(per_layer):
            if rank:
                prefix = f"base_model.model.model.layers.{layer}.{target}.lora_"
                yield target, layer, rank, prefix + "A.weight", prefix + "B.weight"


def _check_variant(directory: pathlib.Path, fields: dict[str, Any]) -> None:
    """Raises UserError where the fields ask for anything but plain LoRA beside the published base."""
    unsupported = [name for name in UNSUPPORTED if fields.get(name)]
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{directory}: peft_type must be LORA, found {fields.get('peft_type')!r}")
    if unsupported or fields.get("bias", "none") != "none":
        raise UserError(f"{directory}: {', '.join(unsupported) or 'bias'} is set; only plain LoRA is supported")
    initial = str(fields.get("init_lora_weights")).lower()
    if initial.startswith(CHANGES_BASE):
        raise UserError(
            f"{directory}: init_lora_weights is {initial}, which changes the base; convert it to plain LoRA"
        )


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
