"""What the backward pass finds kept from the forward pass, and what it computes again: four policies.

Of a projection every number that is kept spares 2 x inputs operations, so two bytes of bfloat16 spare about 2D of them
whichever projection it is; only the MLP's is so wide that keeping all of it is dear. Attention's result spares 2T or
more a number, slow ones. What an adapter makes of its inputs is R numbers a token for as many operations as any number
of the projection costs. The numbers a layer keeps for each token, and the matmuls that are then computed again:

    none         whatever the derivatives ask for, float32 in norms, rotation and SwiGLU among it; nothing
    elementwise  2D + 2NH + 2KH + 2F; nothing (norms, rotation, SwiGLU and masks are computed again)
    selective    2D + 2NH + 2KH; gate and up
    full         D, the layer's input; all but down

Of elementwise and selective, R numbers for each projection and the logarithm of each head's softmax come on top.
"""

from collections.abc import Callable
from typing import Any

import jax

ATTENDED, LOW = "attended", "low"
"""Names of what attention gives, with its softmax's denominator, and of an adapter's R numbers."""
ATTENTION = (ATTENDED, LOW, *(f"self_attn.{name}_proj" for name in "qkvo"))
CUDNN = "dot_product_attention_fwd_wrapper"
"""jax's name of cuDNN's attention, whose results can carry no name of ours."""
KEPT = {"elementwise": (*ATTENTION, "mlp.gate_proj", "mlp.up_proj"), "selective": ATTENTION, "full": ()}
"""What a policy keeps beside a layer's input, by the names that the arrays carry (a Linear's result its own).

From most kept to most computed again."""


def rematted(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`layer` under one of the four policies: the same values and gradients, other memory and work."""
    if remat == "none":
        return layer
    named = jax.checkpoint_policies.save_only_these_names(*KEPT[remat])

    def policy(primitive: Any, *operands: Any, **parameters: Any) -> Any:
        if ATTENDED in KEPT[remat] and primitive.name == CUDNN:
            return True
        return named(primitive, *operands, **parameters)

    return jax.checkpoint(layer, policy=policy)
