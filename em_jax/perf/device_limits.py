"""What a device can do at most, and what a model needs: the two sides of MFU and of the bandwidth roofline."""

from collections.abc import Sequence

from em_jax.model.config import TransformerConfig
from em_jax.runs.chips import CHIPS
from em_jax.runs.programs import weight_sizes
from em_jax.train.batches import Example

PEAKS = {chip.kind: chip for chip in CHIPS.values()}
"""By jax's device_kind. No MFU is given for other devices."""
FORMULA = "MFU: 4 x matrices per token, 4DV per place with loss, 6 T^2 NHL per example of T tokens (causal attention)"


def train_flops(config: TransformerConfig, examples: Sequence[Example]) -> float:
    """Operations that LoRA training of these examples needs, without the adapter's own and without recomputation.

    The base is frozen, so the backward pass costs as much as the forward pass: 2 operations per weight and token each,
    4 in all; the head only at tokens with loss; attention two products forward and four backward over half of T x T.
    """
    tokens = sum(len(example.ids) for example in examples)
    loss_tokens = sum(sum(example.mask[1:]) for example in examples)
    squares = sum(len(example.ids) ** 2 for example in examples)
    heads = config.num_attention_heads * config.head_dim
    head = 4 * loss_tokens * config.hidden_size * config.vocab_size
    return 4 * tokens * weight_sizes(config)[0] + head + 6 * squares * heads * config.num_hidden_layers


def decode_bytes(config: TransformerConfig, rows: int, length: float, itemsize: int) -> float:
    """Bytes that must be read for one token in each of `rows` answers whose keys are `length` long on average."""
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length * rows
    return itemsize * (sum(weight_sizes(config)) + cache)
