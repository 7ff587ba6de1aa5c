"""config.json of Hugging Face checkpoints, to and from the sizes and facts of a model."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.files import read_object
from em_jax.formats.presets import preset_config
from em_jax.model.config import RopeScaling, TransformerConfig

EXPECTED: dict[Any, str] = {int: "a positive integer", float: "a positive number", bool: "true or false"}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "qk_norm": True, "head_dim": 128},
    "llama": {"qkv_bias": False, "qk_norm": False, "max_position_embeddings": 2048},
}
"""What a model_type says by itself: facts without a field, and values of fields where config.json omits them."""
ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
"""The keys of rope_scaling and rope_parameters that plain RoPE has."""
KEYS = {"llama3": (*ROPE, *(field.name for field in dataclasses.fields(RopeScaling)))}
"""Those of the scalings that have more, by type."""


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> TransformerConfig:
    """Reads a Hugging Face config, found at `where`. Raises UserError naming every field missing or not supported."""
    family = FAMILIES.get(str(raw.get("model_type")), {})
    facts = {name: value for name, value in family.items() if name in ("qkv_bias", "qk_norm")}
    raw_given = {name: value for name, value in raw.items() if value is not None}
    given: dict[str, Any] = {**family, **raw_given, **facts}
    width: Any = given.get("hidden_size")
    heads: Any = given.get("num_attention_heads")
    rope = given.get("rope_parameters") or given.get("rope_scaling")
    if isinstance(rope, dict) and rope.get("rope_theta") is not None:
        given["rope_theta"] = rope["rope_theta"]
    if _is_valid(width, int) and _is_valid(heads, int):
        given = {"num_key_value_heads": heads, "head_dim": width // heads} | given
    problems = _unsupported(raw)
    values, wrong = _values(TransformerConfig, given)
    problems += wrong
    if isinstance(rope, dict) and _rope_type(rope) == "llama3":
        numbers, wrong = _values(RopeScaling, rope)
        problems += [f"RoPE scaling of type 'llama3': {problem}" for problem in wrong]
        if not wrong and not numbers["low_freq_factor"] < numbers["high_freq_factor"]:
            problems.append("RoPE scaling of type 'llama3': low_freq_factor must be less than high_freq_factor")
        values["rope_scaling"] = None if wrong else RopeScaling(**numbers)
    if not problems and values["head_dim"] % 2:
        problems.append(f"head_dim must be even, found {values['head_dim']}")
    if not problems and heads % values["num_key_value_heads"]:
        problems.append("num_attention_heads is not a multiple of num_key_value_heads")
    if not problems and "head_dim" not in {**family, **raw_given} and width % heads:
        problems.append("hidden_size is not a multiple of num_attention_heads and head_dim is not given")
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))
    return TransformerConfig(**values)


def read_config(directory: pathlib.Path) -> TransformerConfig:
    """Reads `directory`/config.json. Raises UserError where it is missing, not JSON or not supported."""
    path, expected = directory / "config.json", "a Hugging Face checkpoint"
    if not path.exists() and any(directory.glob("*.gguf")):
        expected += " with safetensors; GGUF files are not read: give the repository that they were converted from"
    return parse_config(read_object(path, expected), str(path))


def config_fields(config: TransformerConfig) -> dict[str, Any]:
    """The fields of a Hugging Face config.json. ValueError for facts that no model_type has together."""
    fields = dataclasses.asdict(config)
    facts = {"qkv_bias": fields.pop("qkv_bias"), "qk_norm": fields.pop("qk_norm")}
    kind = next((name for name, family in FAMILIES.items() if facts.items() <= family.items()), None)
    if kind is None:
        raise ValueError(f"no model_type has {facts}")
    if config.rope_scaling is not None:
        fields["rope_scaling"] = {"rope_type": "llama3", **fields["rope_scaling"]}
    return {"architectures": [f"{kind.title()}ForCausalLM"], "model_type": kind, "hidden_act": "silu", **fields}


def named_config(name: str) -> TransformerConfig:
    """The config of "qwen2.5-32b" or of a directory. Raises UsageError for an unknown name."""
    if pathlib.Path(name).is_dir():
        return read_config(pathlib.Path(name))
    return preset_config(name, "--model: expected a checkpoint's directory or")


def _values(cls: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a dataclass that are numbers or booleans, from JSON, and a message for each that is not valid."""
    values, problems = {}, []
    for field in dataclasses.fields(cls):
        kind: Any = field.type
        if kind not in EXPECTED:
            continue
        value = given.get(field.name, field.default)
        if _is_valid(value, kind):
            values[field.name] = kind(value)
        else:
            shown = "nothing" if value is dataclasses.MISSING else repr(value)
            problems.append(f"{field.name} must be {EXPECTED[kind]}, found {shown}")
    return values, problems


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type"))


def _is_valid(value: Any, kind: Any) -> bool:
    """Whether a JSON value is what EXPECTED says for a field of this type."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    types, limit = (int, 2**31) if kind is int else ((int, float), 1e300)
    return isinstance(value, types) and 0 < value < limit


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """A message for each field that asks for what this implementation does not compute."""
    problems = []
    if raw.get("model_type") not in list(FAMILIES):
        expected = ", ".join(map(repr, FAMILIES))
        problems.append(f"model_type must be one of {expected}, found {raw.get('model_type')!r}")
    if raw.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act must be 'silu', found {raw['hidden_act']!r}")
    if raw.get("partial_rotary_factor") not in (None, 1):
        problems.append(f"partial_rotary_factor is {raw['partial_rotary_factor']!r}: all of a head must be rotated")
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name) and raw.get("model_type") != "qwen2":
            problems.append(f"{name} is {raw[name]!r}: such biases are not supported")
    problems += _sliding(raw)
    if raw.get("quantization_config"):
        problems.append("quantization_config: quantised checkpoints are not supported, use the original weights")
    ropes = [raw.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    if all(ropes) and ropes[0] != ropes[1]:
        problems.append("rope_scaling and rope_parameters differ: give one of them")
    for name in ("rope_scaling", "rope_parameters"):
        rope = raw.get(name) or {}
        if not isinstance(rope, dict):
            problems.append(f"{name} must be an object, found {rope!r}")
        elif (kind := _rope_type(rope)) not in ("default", "llama3", None):
            problems.append(f"{name} of type {kind!r}: of RoPE's scalings only llama3 is supported")
        elif rope.get("partial_rotary_factor", 1.0) != 1.0:
            problems.append(f"{name} with partial_rotary_factor {rope['partial_rotary_factor']!r} is not supported")
        elif unknown := [key for key, value in rope.items() if value is not None and key not in KEYS.get(kind, ROPE)]:
            nested = " (nested by layer type)" if any(isinstance(rope[key], dict) for key in unknown) else ""
            problems.append(f"{name} with {', '.join(map(repr, unknown))}{nested} is not supported")
    return problems


def _sliding(raw: Mapping[str, Any]) -> list[str]:
    """A message where a layer slides: by `layer_types`, else, as transformers decides, from max_window_layers on."""
    used, kinds, window = (raw.get(name) for name in ("use_sliding_window", "layer_types", "sliding_window"))
    first, layers = raw.get("max_window_layers", 28), raw.get("num_hidden_layers")
    if used not in (None, False, True):
        return [f"use_sliding_window must be true or false, found {used!r}"]
    if kinds is not None:
        full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds) and len(kinds) == layers
        expected = f"layer_types must be 'full_attention' for each of {layers} layers"
        return [] if full else [f"{expected}, found {kinds!r:.200}"]
    has_window = used and (window is not None or "sliding_window" not in raw)
    if has_window and not (_is_valid(first, int) and _is_valid(layers, int) and first >= layers):
        why = "sliding-window attention is not supported"
        return [f"use_sliding_window is true and max_window_layers {first!r}: {why}"]
    return []
