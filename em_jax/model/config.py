"""The sizes and constants of a model of the Qwen2, Qwen3 or Llama 3 architecture."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's extension of the context beyond `original_max_position_embeddings` (RoPE type `llama3`).

    Pairs that turn fewer than `low_freq_factor` times over the original context turn `factor` times slower, those that
    turn more than `high_freq_factor` times as before; in between the two are mixed.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model, and the three facts in which the architectures differ; fields are named as in config.json.

    Qwen2 has biases on the query, key and value projections; Qwen3 has none, but an RMSNorm on each head's queries and
    keys, before the rotation; Llama 3 has neither, and may scale its RoPE.

    In shape letters: D hidden_size, F intermediate_size, L num_hidden_layers, N num_attention_heads,
    K num_key_value_heads, H head_dim, V vocab_size.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    qkv_bias: bool = True
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None

    @property
    def dims(self) -> dict[str, int]:
        """The size behind each shape letter of a weight."""
        sizes = {"D": self.hidden_size, "F": self.intermediate_size, "L": self.num_hidden_layers}
        heads = {"N": self.num_attention_heads, "K": self.num_key_value_heads, "H": self.head_dim}
        return sizes | heads | {"V": self.vocab_size}
