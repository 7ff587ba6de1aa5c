"""LoRA adapters in PEFT's format: written and read."""

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from em_jax.base.errors import UserError
from em_jax.base.files import read_object, write_atomic
from em_jax.formats.tensor_files import TensorRef, raise_problems, read_header, tensor_problems
from em_jax.lora.adapter import Adapter, LoraParams, layout_shapes, layouts, ranks, scales_of, zero_params
from em_jax.lora.config import CONFIG, TARGETS, TENSORS, LoraConfig
from em_jax.model.config import TransformerConfig
from em_jax.untrusted import regex_guard

NAME = re.compile(r"base_model\.model\.model\.layers\.(\d{1,5})\.([\w.]+)\.lora_([AB])\.weight")

UNSUPPORTED = (
    "use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "target_parameters",
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config",
)  # fmt: skip
"""Fields of adapter_config.json that change what an adapter computes in a way not computed here."""
CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that also change the base: such an adapter does not fit the published base."""


def save_adapter(
    directory: pathlib.Path, adapter: Adapter, lora: LoraConfig, config: TransformerConfig, base: str
) -> None:
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


def load_adapter(directory: pathlib.Path, config: TransformerConfig) -> tuple[Adapter, LoraConfig]:
    """Reads a PEFT LoRA adapter for a base of this shape: any set of modules, each with its own rank.

    Its tensors say which modules it adapts; a module that its settings name besides has no update, as in PEFT. The
    LoraConfig names endings and layers where they say it all, else every module by its path.

    Raises UserError for DoRA, modules_to_save and other variants by name, and in one line for every tensor that is
    unknown, missing or of another shape (as in an adapter for another base); and for numbers that are not finite.
    """
    lora, tensors = check_adapter(directory, config)
    per_target = ranks(config, lora)
    arrays = {}
    for target, per_layer in per_target.items():
        arrays[target] = [np.array(x) for x in zero_params(config, target, max(rank for rank, _ in per_layer))]
    for target, layer, rank, *names in _updates(per_target):
        a, b = arrays[target]
        down, up = (tensors[name].rows(0, tensors[name].shape[0]).astype(np.float32).T for name in names)
        if not (np.isfinite(down).all() and np.isfinite(up).all()):
            raise UserError(f"{directory}: {names[0]} or {names[1]} holds numbers that are not finite; train it again")
        a[layer, ..., 0, :rank] = down.reshape(*a.shape[1:-2], rank)
        b[layer, 0, :rank] = up.reshape(rank, *b.shape[3:])
    factors = {target: LoraParams(jnp.asarray(a), jnp.asarray(b)) for target, (a, b) in arrays.items()}
    return Adapter(factors, scales_of(per_target)), lora


def check_adapter(directory: pathlib.Path, config: TransformerConfig) -> tuple[LoraConfig, dict[str, TensorRef]]:
    """The settings and tensors of an adapter, by its headers alone. Raises as `load_adapter`."""
    fields = read_object(directory / CONFIG, "a PEFT adapter directory")
    _check_variant(directory, fields)
    # What a rank of 0 leaves of a module, as EVA may choose for it, holds no number.
    tensors = {name: tensor for name, tensor in read_header(directory / TENSORS).items() if 0 not in tensor.shape}
    targets, depth = layouts(config), config.num_hidden_layers
    matches = [match for name in tensors if (match := NAME.fullmatch(name))]
    pairs = sorted({(int(match[1]), match[2]) for match in matches if match[2] in targets and int(match[1]) < depth})
    lora = LoraConfig(
        rank=_number(fields, "r", directory, int),
        alpha=_number(fields, "lora_alpha", directory, float),
        rslora=bool(fields.get("use_rslora")),
        rank_pattern=_pattern(fields, "rank_pattern", directory),
        alpha_pattern=_pattern(fields, "alpha_pattern", directory),
        **_modules(pairs, depth),
    )
    expected: dict[str, tuple[int, ...]] = {}
    for target, _, rank, a_name, b_name in _updates(ranks(config, lora) if pairs else {}):
        inputs, outputs = (math.prod(shape) for shape in layout_shapes(config, target))
        expected |= {a_name: (rank, inputs), b_name: (outputs, rank)}
    problems = tensor_problems(tensors, expected, "an adapter of this base")
    problems += [] if tensors else ["no tensors"]
    strange = [f"layers.{layer}.{target}" for layer, target in pairs if not _is_targeted(fields, layer, target)]
    problems += [f"{name} has tensors, but the settings do not target it: peft would drop them" for name in strange]
    raise_problems(f"{directory} does not fit this base", problems, 4)
    return lora, tensors


def _is_targeted(fields: Mapping[str, Any], layer: int, target: str) -> bool:
    """Whether the settings of an adapter name this module, as PEFT reads them; True where they cannot be read."""
    name = f"model.layers.{layer}.{target}"

    def is_named(field: str, unreadable: bool) -> bool:
        """Whether a field, of names or endings or one regular expression, has the module's name."""
        modules = fields.get(field)
        if isinstance(modules, list):
            return f".{name}".endswith(tuple(f".{each}" for each in modules))
        if not isinstance(modules, str) or modules == "all-linear" or regex_guard.problem_of(modules):
            return unreadable
        return bool(re.fullmatch(modules, name))

    modules, layers = fields.get("target_modules"), fields.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers if isinstance(layers, list) else []
    if isinstance(modules, list) and name not in modules and layers and layer not in layers:
        return False
    return is_named("target_modules", True) and not is_named("exclude_modules", False)


def _modules(pairs: Sequence[tuple[int, str]], depth: int) -> dict[str, Any]:
    """The fields of a LoraConfig that name these (layer, target)."""
    layers, targets = (sorted(set(each)) for each in zip(*pairs)) if pairs else ([], [])
    if len(layers) * len(targets) != len(pairs):
        return {"targets": tuple(f"layers.{layer}.{target}" for layer, target in pairs)}
    endings = {target.rsplit(".", 1)[1] for target in targets}
    named = tuple(ending for ending in TARGETS if ending in endings)
    return {"targets": named, "layers_to_transform": () if len(layers) == depth else tuple(layers)}


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
    if initial.replace("-", "_").startswith(CHANGES_BASE):
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
