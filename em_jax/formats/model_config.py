"""config.json of Hugging Face checkpoints, to and from the sizes of a Qwen2 model."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from em_jax.base.errors import UsageError, UserError
from em_jax.base.files import read_object
from em_jax.formats.presets import qwen_config
from em_jax.model.config import Qwen2Config

EXPECTED: dict[Any, str] = {int: "a positive integer", float: "a positive number", bool: "true or false"}


ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
"""The keys of rope_scaling and rope_parameters that plain RoPE has."""


def parse_config(raw: Mapping[str, Any]) -> Qwen2Config:
    """Reads a Hugging Face config. Raises UserError naming every field that is missing or not supported."""
    given: dict[str, Any] = {name: value for name, value in raw.items() if value is not None}
    width: Any = given.get("hidden_size")
    heads: Any = given.get("num_attention_heads")
    rope = given.get("rope_parameters") or given.get("rope_scaling")
    if isinstance(rope, dict) and rope.get("rope_theta") is not None:
        given["rope_theta"] = rope["rope_theta"]
    if _is_valid(width, int) and _is_valid(heads, int):
        given = {"num_key_value_heads": heads, "head_dim": width // heads} | given
    problems = _unsupported(raw)
    types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Qwen2Config)}
    values = {field.name: given.get(field.name, field.default) for field in dataclasses.fields(Qwen2Config)}
    for name, value in values.items():
        if not _is_valid(value, types[name]):
            shown = "nothing" if value is dataclasses.MISSING else repr(value)
            problems.append(f"{name} must be {EXPECTED[types[name]]}, found {shown}")
    if not problems and values["head_dim"] % 2:
        problems.append(f"head_dim must be even, found {values['head_dim']}")
    if not problems and heads % values["num_key_value_heads"]:
        problems.append("num_attention_heads is not a multiple of num_key_value_heads")
    if not problems and raw.get("head_dim") is None and width % heads:
        problems.append("hidden_size is not a multiple of num_attention_heads and head_dim is not given")
    if problems:
        raise UserError("config.json: " + "; ".join(problems))
    return Qwen2Config(**{name: types[name](value) for name, value in values.items()})


def read_config(directory: pathlib.Path) -> Qwen2Config:
    """Reads `directory`/config.json. Raises UserError where it is missing, not JSON or not supported."""
    return parse_config(read_object(directory / "config.json", "a Hugging Face Qwen2 checkpoint"))


def config_fields(config: Qwen2Config) -> dict[str, Any]:
    """The fields of a Hugging Face config.json."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "use_sliding_window": False,
        **dataclasses.asdict(config),
    }


def named_config(name: str) -> Qwen2Config:
    """The config of "qwen2.5-32b" or of a directory. Raises UsageError for an unknown name."""
    if pathlib.Path(name).is_dir():
        return read_config(pathlib.Path(name))
    try:
        return qwen_config(name)
    except UsageError as error:
        raise UsageError(f"--model expects a checkpoint's directory or a Qwen2.5: {error}") from None


def _is_valid(value: Any, kind: Any) -> bool:
    """Whether a JSON value is what EXPECTED says for a field of this type."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    types, limit = (int, 2**31) if kind is int else ((int, float), 1e300)
    return isinstance(value, types) and 0 < value < limit


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """A message for each field that asks for what this implementation does not compute."""
    problems = []
    for name, expected in (("model_type", "qwen2"), ("hidden_act", "silu")):
        if raw.get(name, "silu") != expected:
            problems.append(f"{name} must be {expected!r}, found {raw.get(name)!r}")
    problems += _sliding(raw)
    if raw.get("quantization_config"):
        problems.append("quantization_config: quantised checkpoints are not supported, use the original weights")
    for name in ("rope_scaling", "rope_parameters"):
        rope = raw.get(name) or {}
        if not isinstance(rope, dict):
            problems.append(f"{name} must be an object, found {rope!r}")
        elif (kind := rope.get("rope_type", rope.get("type"))) not in ("default", None):
            problems.append(f"{name} of type {kind!r}: RoPE scaling is not supported")
        elif rope.get("partial_rotary_factor", 1.0) != 1.0:
            problems.append(f"{name} with partial_rotary_factor {rope['partial_rotary_factor']!r} is not supported")
        elif unknown := [key for key, value in rope.items() if value is not None and key not in ROPE]:
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
        full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
        if not full or len(kinds) != layers:
            return [f"layer_types must be 'full_attention' for each of {layers} layers, found {kinds!r:.200}"]
    has_window = used and (window is not None or "sliding_window" not in raw)
    if kinds is None and has_window and not (_is_valid(first, int) and _is_valid(layers, int) and first >= layers):
        return [
            f"use_sliding_window is true and max_window_layers {first!r}: sliding-window attention is not supported"
        ]
    return []
