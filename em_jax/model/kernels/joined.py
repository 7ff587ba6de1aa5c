"""Adapters arranged for decoding: fewer, larger products than `apply_together` makes of them, with the same sums."""

import math
from collections.abc import Mapping

import jax.numpy as jnp

from em_jax.model.kernels import few_rows
from em_jax.model.kernels.low_rank import JOINT
from em_jax.model.linear import LoraWeights
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
    joint, dtype = (with_stacks if whole else with_joint_a)(lora_params), model.embed_tokens[...].dtype
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


def with_stacks(lora_params: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """One adapter in which targets that read the same input are one, under their names with JOINT between them.

    The A's are side by side, [L, inputs, S, J R], the B's, times their scales, a stack [L, S, J, R, Y]. Zeros fill up
    R, to what a product on tensor cores takes, and Y. A GPU launches less for that, and for a small batch a launch
    costs more than the zeros.
    """
    joint = dict(lora_params)
    for group in TOGETHER:
        names = [name for name in group if name in joint]
        if len(names) < 2:
            continue
        given, a, b = [joint.pop(name) for name in names], [], []
        rank = few_rows.power_of_two(max(lora.a.shape[-1] for lora in given))
        width = max(math.prod(lora.b.shape[3:]) for lora in given)
        for lora in given:
            missing = 0, rank - lora.a.shape[-1]
            a.append(jnp.pad(lora.a, [(0, 0)] * (lora.a.ndim - 1) + [missing]))
            # No einsum for the scale: a GPU may round its operands.
            scaled = lora.b.reshape(*lora.b.shape[:3], -1) * lora.scale[:, :, None, None]
            b.append(jnp.pad(scaled, [(0, 0), (0, 0), missing, (0, width - scaled.shape[-1])]))
        stack = LoraWeights(jnp.concatenate(a, -1), jnp.stack(b, 2), jnp.ones_like(given[0].scale))
        joint[JOINT.join(names)] = stack
    return joint
