"""What the backward pass keeps of the forward pass, and what it recomputes: four policies.

Saving one projection output (2 bytes) avoids 2 d_in FLOPs of recomputation, about 2D of them for every projection; only
the MLP is so wide that saving all of its outputs is expensive. Saving one number of attention's output avoids 2T or
more, slow ones. An adapter's x A is R numbers a token and avoids as many FLOPs a number as a projection output does.
The numbers a layer saves for each token, and the matmuls that are recomputed:

    none         all that the derivatives need, float32 in norms, rotation and SwiGLU included; nothing
    elementwise  2D + 2NH + 2KH + 2F; nothing (norms, rotation, SwiGLU and masks are recomputed)
    selective    2D + 2NH + 2KH; gate and up
    full         D, the layer's input; all but down

Elementwise and selective also save R numbers for each projection and the logarithm of each head's softmax denominator.
"""

from collections.abc import Callable
from typing import Any

import jax

ATTENDED, LOW, QUERY_KEY = "attended", "low", "query_key"
"""Names of attention's output with its softmax denominator, of an adapter's x A, and of queries and keys."""
ATTENTION = (ATTENDED, LOW, QUERY_KEY, "self_attn.v_proj", "self_attn.o_proj")
CUDNN = "dot_product_attention_fwd_wrapper"
"""jax's name of cuDNN's attention, whose outputs cannot be given one of our names."""
KEPT = {"elementwise": (*ATTENTION, "mlp.gate_proj", "mlp.up_proj"), "selective": ATTENTION, "full": ()}
"""The names of the arrays that a policy saves beside a layer's input, from most saved to most recomputed.

A Linear's output has the name of the Linear."""


def rematted(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`layer` under one of the four policies: the same values and gradients, different memory and work.

    "auto", which a run has decided by now, is none.
    """
    if remat in ("none", "auto"):
        return layer
    named = jax.checkpoint_policies.save_only_these_names(*KEPT[remat])

    def policy(primitive: Any, *operands: Any, **parameters: Any) -> Any:
        return (ATTENDED in KEPT[remat] and primitive.name == CUDNN) or named(primitive, *operands, **parameters)

    return jax.checkpoint(layer, policy=policy)
