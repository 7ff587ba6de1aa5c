"""Cross-entropy where there is loss, in chunks: no array of B x T x V ever exists."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from em_jax.model.linear import einsum_f32
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding


@jax.custom_vjp
def gather_places(
    hidden: Float[Array, "B T D"], loss_positions: Int[Array, "B M"], loss_inverse: Int[Array, "B T"]
) -> Float[Array, "B M D"]:
    """The hidden states at `loss_positions`. Its gradient gathers by the inverse index: scatters are slow on CPU."""
    return jnp.take_along_axis(hidden, loss_positions[:, :, None], axis=1)


def _gather_forward(hidden: Array, loss_positions: Array, loss_inverse: Array) -> tuple[Array, Array]:
    return gather_places(hidden, loss_positions, loss_inverse), loss_inverse


def _gather_backward(loss_inverse: Array, gradient: Array) -> tuple[Array, None, None]:
    padded = jnp.pad(gradient, ((0, 0), (0, 1), (0, 0)))
    return jnp.take_along_axis(padded, loss_inverse[:, :, None], axis=1), None, None


gather_places.defvjp(_gather_forward, _gather_backward)


def chunk_size(rows: int, places: int, sharding: Sharding = UNSHARDED) -> int:
    """Places of each row whose logits exist at once: few for a CPU's cache, more to keep an accelerator busy."""
    chunk = (128 if sharding.platform == "cpu" else 512) * sharding.batch_parts
    return max(1, min(places, chunk // rows))


def summed_loss(
    model: Qwen2,
    hidden: Float[Array, "B M D"],
    labels: Int[Array, "B M"],
    weights: Float[Array, "B M"],
    *,
    size: int = 0,
    sharding: Sharding = UNSHARDED,
) -> Float[Array, ""]:
    """Sum over places of weight * -log p(label), float32, from the logits of `size` places of each row at a time.

    The last weight that is not 0 ends the work: what a row has room for beyond costs nothing. Only `hidden` has a
    gradient: the base is frozen.
    """
    size = size or chunk_size(len(labels), labels.shape[1], sharding)
    return _loss(model, hidden, labels, weights, size, sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _loss(model: Qwen2, hidden: Array, labels: Array, weights: Array, size: int, sharding: Sharding) -> Array:
    return _loss_forward(model, hidden, labels, weights, size, sharding)[0]


def _loss_forward(
    model: Qwen2, hidden: Array, labels: Array, weights: Array, size: int, sharding: Sharding
) -> tuple[Array, Array]:
    """The loss and its gradient, both from the same logits, which the backward pass would else compute again (as Hsu
    et al. do, arXiv:2410.10989)."""
    places = labels.shape[1]
    padded = [jnp.pad(x, [(0, 0), (0, -places % size)] + [(0, 0)] * (x.ndim - 2)) for x in (hidden, labels, weights)]
    # Gathered here, once: within the loop a TPU's compiler would have it gathered for every chunk.
    head = jax.lax.optimization_barrier(sharding.gather_for_matmul("VD", model.head))
    used = jnp.max(jnp.where(weights != 0, jnp.arange(1, places + 1)[None], 0))

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        loss, gradient = sums
        hidden, labels, weights = (jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1) for x in padded)
        logits = einsum_f32("BMD,VD->BMV", hidden, head)
        total = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        slope = jnp.exp(logits - total[..., None]) - jax.nn.one_hot(labels, logits.shape[-1])
        slope = sharding.constrain(slope * weights[..., None], ("batch", None, "vocab"))
        piece = einsum_f32("BMV,VD->BMD", slope.astype(head.dtype), head).astype(hidden.dtype)
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, piece, i * size, axis=1)
        return loss + jnp.sum((total - picked) * weights), sharding.constrain(gradient, ("batch", None, None))

    loss, gradient = jax.lax.fori_loop(0, -(-used // size), add, (jnp.float32(0), jnp.zeros_like(padded[0])))
    return loss, gradient[:, :places]


def _loss_backward(size: int, sharding: Sharding, by_hidden: Array, of_loss: Array) -> tuple[None, Array, None, None]:
    return None, (by_hidden * of_loss).astype(by_hidden.dtype), None, None


_loss.defvjp(_loss_forward, _loss_backward)
