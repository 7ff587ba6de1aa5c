"""A device's own attention kernel against the plain one, in interpret mode: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em_jax.model import attention
from em_jax.model.attention import PADDING, Keys, causal_attention, visible
from em_jax.model.kernels import splash
from em_jax.model.sharding import UNSHARDED, Sharding, make_mesh

B, T, N, K, H = 4, 256, 4, 2, 128


@pytest.fixture(scope="module")
def given():
    """Queries, keys and values, and segments of several lengths with padding at the end of some rows."""
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (B, T, N, H))
    k, v = (jax.random.normal(key, (B, K, T, H)) for key in keys[1:3])
    ends = np.array([[256, 256, 256], [100, 101, 256], [128, 200, 240], [1, 130, 131]])
    place = np.arange(T)[None, :, None]
    segments = np.sum(place >= ends[:, None], axis=-1) + 1
    segments = np.where(np.arange(T)[None] < ends.max(axis=1)[:, None], segments, PADDING).astype(np.int32)
    return q, k, v, jnp.asarray(segments), jax.random.normal(keys[3], q.shape)


def with_gradients(attend, q, k, v, weights):
    return jax.jit(jax.value_and_grad(lambda *each: jnp.sum(attend(*each) * weights), argnums=(0, 1, 2)))(q, k, v)


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one device", "mesh"])
def test_splash_is_plain_attention(mesh, given):
    q, k, v, segments, weights = given
    sharding = Sharding(make_mesh(mesh)) if mesh else UNSHARDED
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    mask = visible(positions, positions, segments, segments)
    # What padding says is nobody's affair.
    weights = weights * (segments != PADDING)[:, :, None, None]
    plain = with_gradients(lambda q, k, v: causal_attention(q, Keys(k, v, mask)), q, k, v, weights)
    ours = with_gradients(
        lambda q, k, v: splash.splash_attention(q, k, v, segments, sharding, interpret=True), q, k, v, weights
    )
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert jnp.max(jnp.abs(mine - other)) < 2e-5 * jnp.max(jnp.abs(other))


@pytest.mark.fast
def test_the_kernel_is_taken_where_it_serves_and_rows_stand_apart(given, monkeypatch):
    q, k, v, segments, _ = given
    keys = Keys(k, v, visible(*(jnp.broadcast_to(jnp.arange(T)[None], (B, T)),) * 2, segments, segments))
    assert not splash.serves(T, H, UNSHARDED)
    called = []
    monkeypatch.setattr(attention.splash, "splash_attention", lambda q, *rest: called.append(rest) or q)
    monkeypatch.setattr(Sharding, "platform", "tpu")
    assert (
        splash.serves(T, H, UNSHARDED) and not splash.serves(T, 64, UNSHARDED) and not splash.serves(200, H, UNSHARDED)
    )
    causal_attention(q, keys)
    assert not called
    causal_attention(q, keys, apart=segments)
    assert len(called) == 1
