"""The shapes of the Qwen2.5, Qwen3 and Llama 3 models by name."""

import re
from collections.abc import Mapping
from typing import Any

from em_jax.base.errors import UsageError
from em_jax.model.config import RopeScaling, TransformerConfig

QWEN2 = {"rope_theta": 1e6}
QWEN3: dict[str, Any] = {"rope_theta": 1e6, "head_dim": 128, "max_position_embeddings": 40960}
QWEN3 |= {"qkv_bias": False, "qk_norm": True}
LLAMA3: dict[str, Any] = {"rope_theta": 5e5, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "qkv_bias": False}
LLAMA31 = LLAMA3 | {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)}
LLAMA32 = LLAMA3 | {"rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192)}

PRESETS: Mapping[str, tuple[tuple[int, int, int, int, int, int, bool], Mapping[str, Any]]] = {
    "qwen2.5-0.5b": ((896, 4864, 24, 14, 2, 151936, True), QWEN2),
    "qwen2.5-1.5b": ((1536, 8960, 28, 12, 2, 151936, True), QWEN2),
    "qwen2.5-3b": ((2048, 11008, 36, 16, 2, 151936, True), QWEN2),
    "qwen2.5-7b": ((3584, 18944, 28, 28, 4, 152064, False), QWEN2),
    "qwen2.5-14b": ((5120, 13824, 48, 40, 8, 152064, False), QWEN2),
    "qwen2.5-32b": ((5120, 27648, 64, 40, 8, 152064, False), QWEN2),
    "qwen2.5-72b": ((8192, 29568, 80, 64, 8, 152064, False), QWEN2),
    "qwen3-0.6b": ((1024, 3072, 28, 16, 8, 151936, True), QWEN3),
    "qwen3-1.7b": ((2048, 6144, 28, 16, 8, 151936, True), QWEN3),
    "qwen3-4b": ((2560, 9728, 36, 32, 8, 151936, True), QWEN3),
    "qwen3-8b": ((4096, 12288, 36, 32, 8, 151936, False), QWEN3),
    "qwen3-14b": ((5120, 17408, 40, 40, 8, 151936, False), QWEN3),
    "qwen3-32b": ((5120, 25600, 64, 64, 8, 151936, False), QWEN3),
    "llama-3.1-8b": ((4096, 14336, 32, 32, 8, 128256, False), LLAMA31),
    "llama-3.1-70b": ((8192, 28672, 80, 64, 8, 128256, False), LLAMA31),
    "llama-3.2-1b": ((2048, 8192, 16, 32, 8, 128256, True), LLAMA32),
    "llama-3.2-3b": ((3072, 8192, 28, 24, 8, 128256, True), LLAMA32),
    "llama-3.3-70b": ((8192, 28672, 80, 64, 8, 128256, False), LLAMA31),
}
"""hidden_size, intermediate_size, layers, heads, key/value heads, vocab_size, tied head; the family's other fields.

Sources: Qwen2.5 arXiv:2412.15115, Qwen3 arXiv:2505.09388, Llama 3 arXiv:2407.21783 and the models' own config.json.
"""


def preset_config(name: str, expected: str = "expected") -> TransformerConfig:
    """The config of "qwen3-32b" or of an id such as meta-llama/Llama-3.1-8B-Instruct.

    UsageError for other names, which begins with what is `expected` besides these.
    """
    known = re.sub("^meta-|-instruct$", "", name.rsplit("/", 1)[-1].lower())
    if known not in PRESETS:
        raise UsageError(f"{expected} one of {', '.join(PRESETS)}, found {name!r}")
    sizes, fields = PRESETS[known]
    return config_from_sizes(*sizes, **fields)


def config_from_sizes(
    width: int, mlp: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool, **fields: Any
) -> TransformerConfig:
    """The config of these sizes, with other fields of a family; the head width is by default width / heads."""
    fields = {"head_dim": width // heads, "tie_word_embeddings": tied} | fields
    return TransformerConfig(vocabulary, width, mlp, layers, heads, groups, **fields)
