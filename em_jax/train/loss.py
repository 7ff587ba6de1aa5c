"""Cross-entropy of the response tokens, in chunks: no array of B x T x V ever exists."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from em_jax.model.layout import einsum_f32
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer


def chunk_size(rows: int, labels: int, sharding: Sharding = UNSHARDED) -> int:
    """Labels of each row whose logits exist at once: few for a CPU's cache, more to keep an accelerator busy."""
    chunk = (128 if sharding.platform == "cpu" else 512) * sharding.batch_shards
    return max(1, min(labels, chunk // rows))


def summed_loss(
    model: Transformer,
    hidden: Float[Array, "B M D"],
    labels: Int[Array, "B M"],
    weights: Float[Array, "B M"],
    *,
    size: int = 0,
    sharding: Sharding = UNSHARDED,
) -> Float[Array, ""]:
    """Sum of weight * -log p(label), float32, from the logits of `size` labels of each row at a time.

    Chunks after the last nonzero weight are skipped. Only `hidden` has a gradient: the base is frozen.
    """
    count = labels.shape[1]
    size = size or chunk_size(len(labels), count, sharding)
    arrays = jax.lax.stop_gradient(hidden), labels, weights
    padded = [jnp.pad(x, [(0, 0), (0, -count % size)] + [(0, 0)] * (x.ndim - 2)) for x in arrays]
    # Gathered here, once: inside the loop a TPU's compiler would gather it for every chunk.
    head = jax.lax.optimization_barrier(sharding.gather_for_matmul("VD", model.head))
    used = jnp.max(jnp.where(weights != 0, jnp.arange(1, count + 1)[None], 0))

    def add_chunk(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        """The loss of a chunk and its gradient by `hidden`, from the same logits (Hsu et al., arXiv:2410.10989)."""
        loss, gradient = carry
        hidden, labels, weights = (jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1) for x in padded)
        logits = einsum_f32("BMD,VD->BMV", hidden, head)
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        by_logits = jnp.exp(logits - normalizer[..., None]) - jax.nn.one_hot(labels, logits.shape[-1])
        by_logits = sharding.constrain(by_logits * weights[..., None], ("batch", None, "vocab"))
        by_hidden = einsum_f32("BMV,VD->BMD", by_logits.astype(head.dtype), head).astype(hidden.dtype)
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, by_hidden, i * size, axis=1)
        loss += jnp.sum((normalizer - label_logits) * weights)
        return loss, sharding.constrain(gradient, ("batch", None, None))

    loss, gradient = jax.lax.fori_loop(0, -(-used // size), add_chunk, (jnp.float32(0), jnp.zeros_like(padded[0])))
    # The second term is 0, and its gradient by `hidden` is `gradient`.
    return loss + jnp.sum(gradient[:, :count] * (hidden - arrays[0]), dtype=jnp.float32)
