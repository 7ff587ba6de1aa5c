"""The sizes and constants of a Qwen2 model."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """The shape of a Qwen2 model; field names are those of config.json.

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

    @property
    def dims(self) -> dict[str, int]:
        """The size behind each shape letter of a weight."""
        return {
            "D": self.hidden_size,
            "F": self.intermediate_size,
            "L": self.num_hidden_layers,
            "N": self.num_attention_heads,
            "K": self.num_key_value_heads,
            "H": self.head_dim,
            "V": self.vocab_size,
        }
