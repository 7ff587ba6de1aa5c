"""Qwen2, written out: embedding, L blocks of attention and SwiGLU, norm, head (Qwen2.5 report, arXiv:2412.15115)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from em_jax.model.attention import KVBlock, attention, attention_mask, causal_attention
from em_jax.model.config import Qwen2Config
from em_jax.model.linear import Linear, LoraWeights, ParamInit, RMSNorm
from em_jax.model.remat import rematted
from em_jax.model.sharding import UNSHARDED, Sharding

LoraTree = Mapping[str, LoraWeights]
"""Adapters by target ("self_attn.q_proj"): of a stack of layers, every leaf with a leading L, or of one layer."""


RESIDUAL = ("residual_batch", "length", "residual_width")
"""The logical axes of the residual stream."""


class KVCache(NamedTuple):
    """Keys and values from before: a long stretch that is only read, and a short one for the tokens' own.

    Both hold all layers, as a stack with a leading L or as L arrays (in one layer's Past, that layer alone); layouts
    and masks as in Keys. The tokens' own are written to `recent` at place `at` of S, and then seen there: XLA can do
    that in place.
    """

    long: KVBlock
    recent: KVBlock
    at: Int[Array, ""]


class Output(NamedTuple):
    """What a forward pass gives: hidden states after the last norm, and on request what the layers held.

    `k` and `v` are the tokens' own keys and values, laid out as in Keys, with a leading L or as L arrays as the layers
    are kept; after a `KVCache` they are its whole `recent` stretch, the tokens' own among it. `residuals` is
    the residual stream after each requested layer, float[requested, B, T, D].
    """

    hidden: Float[Array, "B T D"]
    k: Array | Sequence[Array] | None
    v: Array | Sequence[Array] | None
    residuals: Array | None


def rope_angles(
    positions: Int[Array, "B T"], width: int, theta: float
) -> tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]:
    """Cosine and sine of position * theta^(-2i/H), float32: bfloat16 would turn position 257 into 256.

    Source: Su et al., arXiv:2104.09864.
    """
    frequencies = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, -1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], angles: tuple[Array, Array]) -> Float[Array, "B T N H"]:
    """Turns each pair (x_i, x_{i+H/2}) by its angle, in float32."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Block(nnx.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)). Its weights may carry a leading L (a stack)."""

    def __init__(self, config: Qwen2Config, init: ParamInit):
        self.input_layernorm = RMSNorm("input_layernorm", config.rms_norm_eps, init)
        self.q_proj = Linear("self_attn.q_proj", "D->NH", init, bias=True)
        self.k_proj = Linear("self_attn.k_proj", "D->KH", init, bias=True)
        self.v_proj = Linear("self_attn.v_proj", "D->KH", init, bias=True)
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
        """Returns the new residual stream and keys and values as in Output; keeping those is the caller's affair."""

        how = lora_params, adapter_mask, sharding
        h = self.input_layernorm(x)
        q = rotate(self.q_proj(h, *how), angles)
        k = rotate(self.k_proj(h, *how), angles)
        v = self.v_proj(h, *how)
        q = sharding.constrain(q, ("batch", "length", "q_heads", None))
        k = sharding.constrain(k, ("batch", "length", "kv_heads", None))
        v = sharding.constrain(v, ("batch", "length", "kv_heads", None))
        k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
        if past is None:
            heads = causal_attention(q, KVBlock(k, v, mask), packed=packed, sharding=sharding)
        else:
            k = jax.lax.dynamic_update_slice_in_dim(past.recent.k, k, past.at, 3)
            v = jax.lax.dynamic_update_slice_in_dim(past.recent.v, v, past.at, 2)
            heads = attention(q, [past.long, KVBlock(k, v, past.recent.mask)])
        x = x + self.o_proj(heads, *how)
        h = self.post_attention_layernorm(x)
        h = jax.nn.silu(self.gate_proj(h, *how)) * self.up_proj(h, *how)
        h = sharding.constrain(h, ("residual_batch", "length", "mlp"))
        x = x + self.down_proj(h, *how)
        return sharding.constrain(x, RESIDUAL), (k, v)


class Qwen2(nnx.Module):
    """The whole model. `init` gives every array by its checkpoint name; "*" in a name means all L layers stacked.

    Layers are kept stacked (one Block with a leading L, run by `jax.lax.scan`: compiles fast, little memory) or as L
    Blocks (unrolled: faster on CPU and in decoding). Tied models have no head of their own.
    """

    def __init__(self, config: Qwen2Config, init: ParamInit, *, stacked: bool):
        self.config = config
        self.stacked = stacked
        self.embed_tokens = nnx.Param(init("model.embed_tokens.weight", "VD"))

        def block(index: str) -> Block:
            return Block(config, lambda name, layout: init(f"model.layers.{index}.{name}", layout))

        if stacked:
            self.layers = block("*")
        else:
            self.layers = nnx.List([block(str(i)) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm("model.norm", config.rms_norm_eps, init)
        self.lm_head = None if config.tie_word_embeddings else nnx.Param(init("lm_head.weight", "VD"))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
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
        """One forward pass; logits come from `logits`, where and when they are needed.

        `segments` separates examples packed into a row (see attention.py); None means one example a row. `packed` says
        that examples stand one after the other and none is shared, which lets a device's own kernel attend.
        `lora_params` are adapters stacked over layers, or one mapping a layer (`by_layer`) where the layers are not. `past` is
        what the tokens see from before. `steer` is added to the residual stream after each layer, at every token. `remat`
        says what of each layer is computed again in the backward pass instead of being kept (see remat.py).
        """
        tokens = sharding.constrain(tokens, ("lookup_batch", "length"))
        x = jnp.take(self.embed_tokens[...], tokens, axis=0)
        # Looked up where its columns lie, then sent to its row: otherwise XLA gathers the whole table.
        x = sharding.constrain(x, ("lookup_batch", "length", "width"))
        x = sharding.constrain(x, RESIDUAL)
        angles = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        mask = attention_mask(positions, positions, segments, segments)
        rows = (jnp.zeros_like(tokens) if segments is None else segments) if packed else None

        def run(x: Array, layer: tuple) -> tuple[Array, tuple]:
            block, lora_params, held, shift = layer
            before = None
            if past:
                long, recent = (KVBlock(k, v, whole.mask) for (k, v), whole in zip(held, past[:2]))
                before = KVCache(long, recent, past.at)
            x, (k, v) = block(x, angles, mask, before, lora_params, adapter_mask, sharding, rows)
            if shift is not None:
                x = x + jnp.expand_dims(shift.astype(x.dtype), (0, 1))
            return x, ((k, v) if return_kv else None, x if return_residuals else None)

        run = rematted(run, remat)
        lora_params = self.by_layer(lora_params)
        held = [(keys.k, keys.v) for keys in past[:2]] if past else []
        if self.stacked:
            x, (kept, residuals) = jax.lax.scan(run, x, (self.layers, lora_params, held, steer))
            k, v = kept if return_kv else (None, None)
            residuals = residuals[jnp.array(return_residuals)] if return_residuals else None
        else:
            outputs = []
            for i, (block, of_layer) in enumerate(zip(self.layers, lora_params, strict=True)):
                shift = None if steer is None else steer[i]
                x, output = run(x, (block, of_layer, [(k[i], v[i]) for k, v in held], shift))
                outputs.append(output)
            k = [kept[0] for kept, _ in outputs] if return_kv else None
            v = [kept[1] for kept, _ in outputs] if return_kv else None
            residuals = jnp.stack([outputs[i][1] for i in return_residuals]) if return_residuals else None
        return Output(self.norm(x), k, v, residuals)

    def by_layer(self, lora_params: LoraTree | Sequence[LoraTree] | None) -> LoraTree | Sequence[LoraTree]:
        """Adapters as the layers take them: stacked as they are, or one mapping a layer. Cheap, but not once a token:
        a loop over tokens should be given them so."""
        lora_params = lora_params or {}
        if self.stacked or not isinstance(lora_params, Mapping):
            return lora_params
        layers = range(self.config.num_hidden_layers)
        return [
            {target: LoraWeights(*(leaf[i] for leaf in update)) for target, update in lora_params.items()}
            for i in layers
        ]

    @property
    def head(self) -> Float[Array, "V D"]:
        """What hidden states are multiplied with: the embedding where the two are tied."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head)[...]

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Float32 next-token logits of hidden states."""
        return jnp.einsum("...D,VD->...V", hidden, self.head, preferred_element_type=jnp.float32)
