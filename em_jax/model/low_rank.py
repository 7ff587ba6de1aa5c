"""The low-rank update of a weight (LoRA, Hu et al., arXiv:2106.09685): the plain formula."""

from typing import NamedTuple

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from em_jax.model.layout import einsum_f32
from em_jax.model.remat import LOW


class LoraWeights(NamedTuple):
    """The update of one weight by S adapters of rank R at once: x -> sum over S of scale_S (x A_S) B_S.

    A is [inputs, S, R] and B [S, R, outputs] in the weight's own input and output letters, float32; scale is [S].
    """

    a: Float[Array, "*inputs S R"]
    b: Float[Array, "S R *outputs"]
    scale: Float[Array, "S"]


def low_rank(
    x: Float[Array, "B T X"], a: Float[Array, "X S R"], b: Float[Array, "S R Y"], gain: Float[Array, "#B S"]
) -> Float[Array, "B T Y"]:
    """Sum over S of gain_S (x A_S) B_S, for a weight of X inputs and Y outputs; a row with gain 0 gets no update."""
    low = einsum_f32("BTX,XSR->BTSR", x, a.astype(x.dtype)) * gain[:, None, :, None]
    low = checkpoint_name(low.astype(x.dtype), LOW)
    return einsum_f32("BTSR,SRY->BTY", low, b.astype(x.dtype)).astype(x.dtype)
