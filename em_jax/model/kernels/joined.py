"""Adapters arranged for decoding: fewer, larger products than `apply_together` makes of them, with the same sums."""

from collections.abc import Mapping

import jax.numpy as jnp

from em_jax.model.config import TransformerConfig
from em_jax.model.kernels.low_rank import joint_name
from em_jax.model.layout import Layout
from em_jax.model.linear import LoraWeights
from em_jax.model.parameters import weights_of
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer

TOGETHER = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
"""The targets that read the same input."""


def joined(
    lora_params: Mapping[str, LoraWeights], model: Transformer, sharding: Sharding = UNSHARDED
) -> dict[str, LoraWeights]:
    """The adapters of all layers for `model`, in its dtype, in the form in which a token of each row costs least."""
    one_adapter = all(lora.scale.shape[-1] == 1 for lora in lora_params.values())
    is_split = sharding.mesh is not None and sharding.mesh.shape["tensor"] > 1
    whole = sharding.platform == "gpu" and one_adapter and not is_split
    joint = with_whole_b(lora_params, model.config) if whole else with_joint_a(lora_params)
    dtype = model.embed_tokens[...].dtype
    return {target: LoraWeights(a.astype(dtype), b.astype(dtype), scale) for target, (a, b, scale) in joint.items()}


def with_joint_a(lora_params: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """The A's that read the same input side by side, in the place of the first one; the others then have no rank.

    `apply_together` would do that for every token.
    """
    joint = dict(lora_params)
    for names in TOGETHER:
        present = [name for name in names if name in joint]
        for name in present:
            own = [joint[other].a for other in present] if name == present[0] else [joint[name].a[..., :0]]
            joint[name] = joint[name]._replace(a=jnp.concatenate(own, -1))
    return joint


def with_whole_b(lora_params: Mapping[str, LoraWeights], config: TransformerConfig) -> dict[str, LoraWeights]:
    """One adapter `with_joint_a`, whose B's of layers that read the same input are one, times their scales.

    Those of a Linear's parts are blocks of a matrix under its name, with zeros around them; those of gate and up, where
    their ranks are equal, a stack [L, J, S, R, outputs] under both names. A GPU launches less for that, and for a small
    batch a launch costs more than the zeros.
    """
    joint = with_joint_a(lora_params)
    # No einsum: a GPU may round its operands.
    scaled = {
        target: b * scale.reshape(*scale.shape, *[1] * (b.ndim - 2)) for target, (_, b, scale) in lora_params.items()
    }
    for names in TOGETHER[1:]:
        if all(name in joint for name in names) and len({scaled[name].shape for name in names}) == 1:
            (a, _, scale), *_ = [joint.pop(name) for name in names]
            b = jnp.stack([scaled[name] for name in names], 1)
            joint[joint_name(names)] = LoraWeights(a, b, jnp.ones_like(scale))
    for weight in weights_of(config, stacked=True):
        parts = weight.layout.parts if weight.layout.inputs else ()
        present = [joint.pop(part.name) for part in parts if part.name in joint]
        if not present:
            continue
        a, blocks, start = present[0].a, [], 0
        for part in parts:
            shape = Layout(weight.layout.outputs, parts=(part,)).shape(config.dims)
            b = scaled.get(part.name, jnp.zeros((*a.shape[:1], a.shape[-2], 0, 1)))
            end = start + b.shape[2]
            b = b.reshape(*b.shape[:3], *shape)
            blocks.append(jnp.pad(b, [(0, 0), (0, 0), (start, a.shape[-1] - end)] + [(0, 0)] * len(shape)))
            start = end
        b = jnp.concatenate(blocks, 3 + weight.layout.outputs.index("J"))
        joint[weight.in_layer] = LoraWeights(a, b, jnp.ones_like(present[0].scale))
    return joint
