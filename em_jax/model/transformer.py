"""The model, written out: embedding, L blocks of attention and SwiGLU, norm, head.

Qwen2.5 (arXiv:2412.15115), Qwen3 (arXiv:2505.09388) and Llama 3 (arXiv:2407.21783) differ in three facts, which the
config declares: biases of queries, keys and values; an RMSNorm on each head's queries and keys; RoPE's frequencies.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from em_jax.model.attention import KVBlock, KVCache, attention_mask
from em_jax.model.config import RopeScaling, TransformerConfig
from em_jax.model.kernels.dispatch import cached_attention, causal_attention, silu_gated, written_out
from em_jax.model.layout import Layout, Part, einsum_f32
from em_jax.model.linear import Linear, LoraWeights, ParamInit, RMSNorm, apply_together
from em_jax.model.remat import QUERY_KEY, rematted
from em_jax.model.sharding import UNSHARDED, Sharding

LoraTree = Mapping[str, LoraWeights]
"""Adapters by target ("self_attn.q_proj"); every leaf is one layer's, or has a leading L for all layers."""
RESIDUAL = ("residual_batch", "length", "residual_width")
"""The logical axes of the residual stream."""


class Output(NamedTuple):
    """What a forward pass returns: hidden states after the last norm and, on request, keys, values and residuals.

    `k` and `v` are the tokens' keys and values in the axes of KVBlock, for all layers as in KVCache; with a `KVCache`
    they are its whole chunk buffer, the new tokens included. `residuals` is the residual stream after each requested
    layer, float[requested, B, T, D].
    """

    hidden: Float[Array, "B T D"]
    k: Array | Sequence[Array] | None
    v: Array | Sequence[Array] | None
    residuals: Array | None


def rope_angles(
    positions: Int[Array, "B T"], width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]:
    """Cosine and sine of position * theta^(-2i/H), float32: bfloat16 would turn position 257 into 256.

    With `scaling`, frequencies that turn seldom over the original context are divided by its factor. Sources: Su et
    al., arXiv:2104.09864; for the scaling Meta's published model code, `apply_scaling` of llama-models.
    """
    frequencies = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling is not None:
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = jnp.clip(kept, 0, 1)
        frequencies *= kept + (1 - kept) / scaling.factor
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, -1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], angles: tuple[Array, Array]) -> Float[Array, "B T N H"]:
    """Rotates each pair (x_i, x_{i+H/2}) by its angle, in float32."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Block(nnx.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)). Its weights may carry a leading L (a stack)."""

    def __init__(self, config: TransformerConfig, init: ParamInit):
        self.input_layernorm = RMSNorm("input_layernorm", config.rms_norm_eps, init)
        queries = Part("self_attn.q_proj", "NH", config.num_attention_heads // config.num_key_value_heads)
        qkv = queries, Part("self_attn.k_proj", "KH", 1), Part("self_attn.v_proj", "KH", 1)
        self.qkv_proj = Linear("self_attn.qkv_proj", "D->KJH", init, parts=qkv, bias=config.qkv_bias)
        self.q_norm = RMSNorm("self_attn.q_norm", config.rms_norm_eps, init, "H") if config.qk_norm else None
        self.k_norm = RMSNorm("self_attn.k_norm", config.rms_norm_eps, init, "H") if config.qk_norm else None
        self.o_proj = Linear("self_attn.o_proj", "NH->D", init)
        self.post_attention_layernorm = RMSNorm("post_attention_layernorm", config.rms_norm_eps, init)
        self.gate_proj = Linear("mlp.gate_proj", "D->F", init)
        self.up_proj = Linear("mlp.up_proj", "D->F", init)
        self.down_proj = Linear("mlp.down_proj", "F->D", init)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: tuple[Array, Array],
        mask: Array,
        past: KVCache | None,
        lora_params: LoraTree,
        adapter_mask: Float[Array, "B S"] | None,
        sharding: Sharding,
        packed: Int[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        """Returns the new residual stream, and keys and values as in Output; the caller may drop them."""

        def linear(x: Array, *layers: Linear) -> list[Array]:
            return apply_together(layers, x, lora_params, adapter_mask, sharding)

        h = written_out(self.input_layernorm(x), sharding)
        q, k, v = linear(h, self.qkv_proj)
        if self.q_norm is not None and self.k_norm is not None:
            # With a norm its inputs are saved, which its derivative needs; without one the rotated values.
            q, k = self.q_norm(checkpoint_name(q, QUERY_KEY)), self.k_norm(checkpoint_name(k, QUERY_KEY))
        q, k = rotate(q, angles), rotate(k, angles)
        if self.q_norm is None:
            q, k = checkpoint_name(q, QUERY_KEY), checkpoint_name(k, QUERY_KEY)
        q = sharding.constrain(q, ("batch", "length", "q_heads", None))
        k = sharding.constrain(k, ("batch", "length", "kv_heads", None)).transpose(0, 2, 3, 1)
        v = sharding.constrain(v, ("batch", "length", "kv_heads", None)).transpose(0, 2, 1, 3)
        if past is None:
            heads = causal_attention(q, KVBlock(k, v, mask), packed=packed, sharding=sharding)
        else:
            k = jax.lax.dynamic_update_slice_in_dim(past.chunk[0], k, past.write_index, 3)
            v = jax.lax.dynamic_update_slice_in_dim(past.chunk[1], v, past.write_index, 2)
            heads = cached_attention(q, past._replace(chunk=(k, v)), sharding)
        x = x + linear(heads, self.o_proj)[0]
        h = written_out(self.post_attention_layernorm(x), sharding)
        h = silu_gated(h, self.gate_proj, self.up_proj, lora_params, adapter_mask, sharding)
        h = sharding.constrain(h, ("residual_batch", "length", "mlp"))
        x = x + linear(h, self.down_proj)[0]
        return sharding.constrain(x, RESIDUAL), (k, v)


class Transformer(nnx.Module):
    """The whole model. `init` returns every array, given its name in the checkpoint and its layout.

    Layers are stacked (one Block whose arrays have a leading L, named with "*" for the layer, run by `jax.lax.scan`:
    compiles fast, uses little memory) or a list of L Blocks (unrolled: faster on a CPU and in decoding). A model with
    tied embeddings has no head of its own.
    """

    def __init__(self, config: TransformerConfig, init: ParamInit, *, stacked: bool):
        def block(index: str) -> Block:
            def init_layer(name: str, layout: Layout) -> Any:
                return init(f"model.layers.{index}.{name}", dataclasses.replace(layout, stacked=stacked))

            return Block(config, init_layer)

        self.config = config
        self.stacked = stacked
        self.embed_tokens = nnx.Param(init("model.embed_tokens.weight", Layout("VD")))
        self.layers = block("*") if stacked else nnx.List([block(str(i)) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm("model.norm", config.rms_norm_eps, init)
        self.lm_head = None if config.tie_word_embeddings else nnx.Param(init("lm_head.weight", Layout("VD")))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        *,
        lora_params: LoraTree | Sequence[LoraTree] | None = None,
        adapter_mask: Float[Array, "B S"] | None = None,
        past: KVCache | None = None,
        return_kv: bool = False,
        return_residuals: Sequence[int] = (),
        steer: Float[Array, "L D"] | None = None,
        remat: str = "none",
        packed: bool = False,
        sharding: Sharding = UNSHARDED,
    ) -> Output:
        """One forward pass. It returns hidden states; `logits` makes logits of them where they are needed.

        Args:
          positions: 0, 1, 2, ... by default.
          segments: separates the examples of a row (see attention.py); None means one example a row.
          lora_params: adapters of all layers, stacked, or one mapping a layer where layers are unrolled
            (`unstack_lora_params`).
          adapter_mask: 1 where a row uses one of the S adapters, else 0; None applies all to every row.
          past: keys and values that the tokens attend to beside their own.
          steer: added to the residual stream after each layer, at every token.
          remat: what the backward pass recomputes of each layer (see remat.py).
          packed: examples follow one another and none is SHARED, so a device's own attention kernel may serve.
        """
        x = self._embed(tokens, sharding)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
        mask = attention_mask(positions, positions, segments, segments)
        packed_segments = (jnp.zeros_like(tokens) if segments is None else segments) if packed else None

        def apply_layer(x: Array, inputs: tuple) -> tuple[Array, tuple]:
            block, lora_params, cached, steering = inputs
            cache = KVCache(cached[0], cached[1], past.length, past.write_index) if past else None
            x, kv = block(x, angles, mask, cache, lora_params, adapter_mask, sharding, packed_segments)
            if steering is not None:
                x = x + jnp.expand_dims(steering.astype(x.dtype), (0, 1))
            return x, (kv if return_kv else None, x if return_residuals else None)

        apply_layer = rematted(apply_layer, remat)
        lora_params = self.unstack_lora_params(lora_params)
        cached = [past.prefix, past.chunk] if past else []
        if self.stacked:
            x, (kv, residuals) = jax.lax.scan(apply_layer, x, (self.layers, lora_params, cached, steer))
        else:
            outputs = []
            for i, (block, own) in enumerate(zip(self.layers, lora_params, strict=True)):
                steering = None if steer is None else steer[i]
                x, output = apply_layer(x, (block, own, [(k[i], v[i]) for k, v in cached], steering))
                outputs.append(output)
            kv, residuals = jax.tree.map(lambda *layers: list(layers), *outputs)
        k, v = kv if return_kv else (None, None)
        residuals = jnp.stack([residuals[i] for i in return_residuals]) if return_residuals else None
        return Output(self.norm(x), k, v, residuals)

    def _embed(self, tokens: Int[Array, "B T"], sharding: Sharding) -> Float[Array, "B T D"]:
        tokens = sharding.constrain(tokens, ("lookup_batch", "length"))
        x = jnp.take(self.embed_tokens[...], tokens, axis=0)
        # Look up where the columns are, then send to the rows' devices: otherwise XLA gathers the whole table.
        return sharding.constrain(sharding.constrain(x, ("lookup_batch", "length", "width")), RESIDUAL)

    def unstack_lora_params(self, lora_params: LoraTree | Sequence[LoraTree] | None) -> LoraTree | Sequence[LoraTree]:
        """Unstacks adapters per layer where the layers are unrolled; call once, outside the token loop."""
        lora_params = lora_params or {}
        if self.stacked or not isinstance(lora_params, Mapping):
            return lora_params
        layers = range(self.config.num_hidden_layers)
        return [{name: LoraWeights(*(leaf[i] for leaf in lora)) for name, lora in lora_params.items()} for i in layers]

    @property
    def head(self) -> Float[Array, "V D"]:
        """The output projection: the embedding where the two are tied."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head)[...]

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Float32 next-token logits of hidden states."""
        return einsum_f32("...D,VD->...V", hidden, self.head)
