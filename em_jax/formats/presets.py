"""The shapes of the Qwen2.5 models by name."""

from em_jax.base.errors import UsageError
from em_jax.model.config import Qwen2Config

SIZES = {
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "14b": (5120, 13824, 48, 40, 8, 152064, False),
    "32b": (5120, 27648, 64, 40, 8, 152064, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, False),
}
"""hidden_size, intermediate_size, layers, heads, key/value heads, vocab_size, tied head (arXiv:2412.15115)."""


def qwen_config(name: str) -> Qwen2Config:
    """The config of "qwen2.5-32b" or of an id such as Qwen/Qwen2.5-32B-Instruct. Raises UsageError for other names."""
    size = name.rsplit("/", 1)[-1].lower().removeprefix("qwen2.5-").removesuffix("-instruct")
    if size not in SIZES or "qwen2.5-" not in name.lower():
        raise UsageError(f"expected qwen2.5- with one of {', '.join(SIZES)}, found {name!r}")
    return config_from_sizes(*SIZES[size])


def config_from_sizes(
    width: int, mlp: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool
) -> Qwen2Config:
    """The config of these sizes, with the other fields of Qwen2.5."""
    return Qwen2Config(
        vocabulary, width, mlp, layers, heads, groups, width // heads, rope_theta=1e6, tie_word_embeddings=tied
    )
