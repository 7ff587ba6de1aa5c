"""A device's own attention kernel against the plain one, in interpret mode: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em_jax.model import attention
from em_jax.model.attention import PADDING, KVBlock, KVCache, attention_mask
from em_jax.model.kernels import append, cpu, cudnn, decoding, few_rows, splash
from em_jax.model.kernels.dispatch import cached_attention, causal_attention, silu_gated
from em_jax.model.kernels.low_rank import low_rank
from em_jax.model.linear import Linear
from em_jax.model.remat import rematted
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


KERNELS = {
    "splash": lambda *given: splash.splash_attention(*given, interpret=True),
    "cudnn": lambda *given: cudnn.cudnn_attention(*given, implementation="xla"),
}


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one device", "mesh"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_plain_attention(kernel, mesh, given):
    """cuDNN itself needs a GPU: here its arguments, by XLA."""
    q, k, v, segments, weights = given
    sharding = Sharding(make_mesh(mesh)) if mesh else UNSHARDED
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    mask = attention_mask(positions, positions, segments, segments)
    # What padding says is nobody's affair.
    weights = weights * (segments != PADDING)[:, :, None, None]
    plain = with_gradients(
        lambda q, k, v: causal_attention(q, KVBlock(jnp.swapaxes(k, 2, 3), v, mask)), q, k, v, weights
    )
    ours = with_gradients(lambda q, k, v: KERNELS[kernel](q, k, v, segments, sharding), q, k, v, weights)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert jnp.max(jnp.abs(mine - other)) < 2e-5 * jnp.max(jnp.abs(other))


@pytest.mark.parametrize("length", [T, 190])
def test_attention_in_blocks_is_the_plain_formula(length, given):
    q, k, v, segments, weights = given
    q, k, v, segments, weights = (
        q[:, :length],
        k[:, :, :length],
        v[:, :, :length],
        segments[:, :length],
        weights[:, :length],
    )
    positions = jnp.broadcast_to(jnp.arange(length)[None], (B, length))
    mask = attention_mask(positions, positions, segments, segments)

    def blocks(q, k, v):
        return cpu.blockwise_attention(q, KVBlock(jnp.swapaxes(k, 2, 3), v, mask))

    def plain(q, k, v):
        return attention.attention(q, [KVBlock(jnp.swapaxes(k, 2, 3), v, mask)])

    def naive(q, k, v):
        k, v = (jnp.repeat(x, N // K, axis=1) for x in (k, v))
        scores = jnp.einsum("BTNH,BNSH->BNTS", q, k) * H**-0.5
        return jnp.einsum("BNTS,BNSH->BTNH", jax.nn.softmax(scores, where=mask[:, None], axis=-1), v)

    weights = weights * (segments != PADDING)[:, :, None, None]
    expected = with_gradients(naive, q, k, v, weights)
    for ours in (with_gradients(attend, q, k, v, weights) for attend in (blocks, plain)):
        for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            assert jnp.max(jnp.abs(mine - other)) < 2e-5 * jnp.max(jnp.abs(other))


@pytest.mark.parametrize("rows", [1, 3])
def test_low_rank_by_hand_is_the_plain_formula(rows):
    keys = jax.random.split(jax.random.key(0), 5)
    x, towards = jax.random.normal(keys[0], (3, 7, 12)), jax.random.normal(keys[1], (3, 7, 10))
    ranks = (4, 2)  # of two weights that read the same input
    a = tuple(jax.random.normal(jax.random.fold_in(keys[2], rank), (12, 2, rank)) for rank in ranks)
    b = tuple(jax.random.normal(jax.random.fold_in(keys[3], rank), (2, rank, 10)) for rank in ranks)
    gain = tuple(jax.random.normal(jax.random.fold_in(keys[4], rank), (rows, 2)).at[0, 0].set(0) for rank in ranks)

    def apart(x, a, b, gain, letters):
        return [
            jnp.einsum("BTX,XSR,SRY,BS->BTY", x, *each)
            for each in zip(a, b, jnp.broadcast_to(jnp.stack(gain), (2, 3, 2)))
        ]

    def with_gradients_of(update):
        def weighed(*parts):
            first, second = update(*parts, gain, ("XY", "XY"))
            return jnp.sum((first + 3 * second) * towards)

        return jax.tree.leaves(jax.value_and_grad(weighed, argnums=(0, 1, 2))(x, a, b))

    for ours, plain in zip(with_gradients_of(low_rank), with_gradients_of(apart), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


def test_the_kernel_is_taken_where_it_serves_and_rows_stand_apart(given, monkeypatch):
    q, k, v, segments, _ = given
    keys = KVBlock(
        jnp.swapaxes(k, 2, 3),
        v,
        attention_mask(*(jnp.broadcast_to(jnp.arange(T)[None], (B, T)),) * 2, segments, segments),
    )
    assert not splash.serves(T, H, UNSHARDED)
    called = []
    monkeypatch.setattr(splash, "splash_attention", lambda q, *rest: called.append(rest) or q)
    monkeypatch.setattr(Sharding, "platform", "tpu")
    assert (
        splash.serves(T, H, UNSHARDED) and not splash.serves(T, 64, UNSHARDED) and not splash.serves(200, H, UNSHARDED)
    )
    causal_attention(q, keys)
    assert not called
    causal_attention(q, keys, packed=segments)
    assert len(called) == 1


@pytest.mark.fast
def test_cudnn_is_taken_on_a_gpu_for_the_dtypes_it_has(given, monkeypatch):
    q, k, v, segments, _ = given
    keys = KVBlock(
        jnp.swapaxes(k, 2, 3),
        v,
        attention_mask(*(jnp.broadcast_to(jnp.arange(T)[None], (B, T)),) * 2, segments, segments),
    )
    called = []
    monkeypatch.setattr(cudnn, "cudnn_attention", lambda q, *rest: called.append(q.dtype) or q)
    monkeypatch.setattr(Sharding, "platform", "gpu")
    half = jnp.bfloat16
    assert cudnn.serves(T, 64, half, UNSHARDED) and not cudnn.serves(T, 256, half, UNSHARDED)
    assert not cudnn.serves(T + 1, H, half, UNSHARDED) and not cudnn.serves(T, 20, half, UNSHARDED)
    causal_attention(q, keys, packed=segments)
    causal_attention(q.astype(half), keys)
    assert not called
    causal_attention(q.astype(half), keys, packed=segments)
    assert called == [half]


def halves(given):
    """The same in bfloat16."""
    q, k, v, segments, weights = given
    return *(x.astype(jnp.bfloat16) for x in (q, k, v)), segments, weights


@pytest.mark.fast
@pytest.mark.parametrize("remat, times", [("none", 1), ("selective", 1), ("full", 2)])
def test_a_training_pass_for_a_gpu_calls_cudnn(remat, times, given, monkeypatch):
    """Lowered for a GPU, not run; a policy that keeps what attention gave calls it once."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    q, k, v, segments, weights = halves(given)

    def layer(q, k, v):
        return 2 * cudnn.cudnn_attention(jnp.sin(q), k, v, segments, UNSHARDED)

    def loss(q, k, v):
        return jnp.sum(rematted(layer, remat)(q, k, v) * weights)

    unstable = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in unstable]
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    text = jax.export.export(step, platforms=["cuda"], disabled_checks=checks)(q, k, v).mlir_module()
    assert [text.count(f"@{name}(") for name in unstable] == [times, 1]
    assert "dot_general" not in text


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128])
def test_cudnn_itself_is_plain_attention(width, given):
    """In bfloat16, against float32 from the same numbers."""
    q, k, v, segments, weights = halves(given)
    q, k, v, weights = q[..., :width], k[..., :width], v[..., :width], weights[..., :width]
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    mask = attention_mask(positions, positions, segments, segments)
    weights = weights * (segments != PADDING)[:, :, None, None]
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    plain = with_gradients(lambda q, k, v: causal_attention(q, KVBlock(jnp.swapaxes(k, 2, 3), v, mask)), *wide, weights)
    ours = with_gradients(lambda q, k, v: cudnn.cudnn_attention(q, k, v, segments, UNSHARDED), q, k, v, weights)
    for mine, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(plain[1]), strict=True):
        assert jnp.linalg.norm(mine.astype(jnp.float32) - other) < 2e-2 * jnp.linalg.norm(other)


@pytest.mark.fast
@pytest.mark.parametrize("layers", [(), (3,)], ids=["one layer", "stacked"])
@pytest.mark.parametrize("axis", [-1, -2])
def test_appending_at_once_equals_row_by_row(axis, layers):
    """At each row's own length; past the end both write the last places."""
    shape, chunk_shape = [*layers, 4, 2, 8, 8], [*layers, 4, 2, 8, 8]
    chunk_shape[axis] = 3
    cache, chunk = (jnp.asarray(np.random.default_rng(0).normal(size=size)) for size in (shape, chunk_shape))
    length = jnp.array([0, 5, 2, 7])
    appended = append.append_rows(axis, cache, chunk, length)
    assert np.array_equal(appended, append.append_at_once(axis, cache, chunk, length))
    row = np.moveaxis(np.asarray(appended), (len(layers), axis), (0, 1))[1]
    assert np.array_equal(row[5:], np.moveaxis(np.asarray(chunk), (len(layers), axis), (0, 1))[1])


@pytest.fixture(scope="module")
def cached():
    """A token's queries and a cache, for rows whose prefix is empty, full, in one block and in two."""
    keys = jax.random.split(jax.random.key(1), 5)
    q, steps = jax.random.normal(keys[0], (B, 1, 6, H)), 16
    prefix = jax.random.normal(keys[1], (B, K, H, T)), jax.random.normal(keys[2], (B, K, T, H))
    chunk = jax.random.normal(keys[3], (B, K, H, steps)), jax.random.normal(keys[4], (B, K, steps, H))
    return q, KVCache(prefix, chunk, jnp.array([0, T, 20, 33]), jnp.int32(0))


@pytest.mark.parametrize("written", [1, 16])
@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one device", "mesh"])
def test_the_decoding_kernel_is_plain_attention(mesh, written, cached):
    sharding = Sharding(make_mesh(mesh), sampling=True) if mesh else UNSHARDED
    q, cache = cached[0], cached[1]._replace(write_index=jnp.int32(written - 1))
    ours = decoding.decoding_attention(q, cache, sharding, interpret=True)
    assert jnp.max(jnp.abs(ours - cached_attention(q, cache))) < 1e-6


@pytest.mark.fast
def test_the_decoding_kernel_reads_only_what_is_filled(cached):
    q, cache = cached[0], cached[1]._replace(write_index=jnp.int32(2))
    (k, v), (chunk_k, chunk_v), length, _ = cache
    hidden, unwritten = np.arange(T) >= np.asarray(length)[:, None, None], np.arange(16) >= 3
    spoiled = jnp.where(hidden[:, :, None], 1e9, k), jnp.where(hidden[..., None], 1e9, v)
    later = jnp.where(unwritten, 1e9, chunk_k), jnp.where(unwritten[:, None], 1e9, chunk_v)
    found = [
        decoding.decoding_attention(q, each, UNSHARDED, interpret=True)
        for each in (cache, cache._replace(prefix=spoiled, chunk=later))
    ]
    assert np.array_equal(*found)


def lowered_for_a_gpu(step, *given):
    """The program's text; it is not run."""
    check = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    return jax.export.export(jax.jit(step), platforms=["cuda"], disabled_checks=[check])(*given).mlir_module()


@pytest.mark.fast
def test_decoding_for_a_gpu_is_one_kernel(cached, monkeypatch):
    monkeypatch.setattr(Sharding, "platform", "gpu")
    given = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim > 1 else x, cached)
    text = lowered_for_a_gpu(cached_attention, *given)
    assert text.count("@__gpu$xla.gpu.triton(") == 1 and "stablehlo.dot_general" not in text
    assert decoding.serves(7, 128, 1024, 16, jnp.bfloat16, UNSHARDED)
    wrong = (17, 128, 1024, 16), (7, 96, 1024, 16), (7, 256, 1024, 16), (7, 128, 1000, 16), (7, 128, 1024, 12)
    assert not any(decoding.serves(*sizes, jnp.bfloat16, UNSHARDED) for sizes in wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, within", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_the_decoding_kernel_itself_is_plain_attention(dtype, within, cached):
    """Against float32 from the same numbers."""
    cached = cached[0], cached[1]._replace(write_index=jnp.int32(4))
    low = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, cached)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim > 1 else x, low)
    on_cpu = Sharding(make_mesh({"fsdp": 1}, devices=jax.devices("cpu")[:1]), sampling=True)
    with jax.default_matmul_precision("highest"):
        plain = cached_attention(*jax.device_put(wide, jax.devices("cpu")[0]), on_cpu)
    ours = decoding.decoding_attention(*low, UNSHARDED)
    assert np.linalg.norm(np.asarray(ours, np.float32) - plain) < within * np.linalg.norm(plain)


def rounded(x):
    """Numbers that sixteen bits hold, so that sums alone differ."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


@pytest.fixture(scope="module")
def mlp():
    """A token of each row, weights of gate, up and down, and what an adapter adds to gate and up."""
    keys = jax.random.split(jax.random.key(2), 7)
    shapes = (64, 1, 256), (256, 128), (256, 128), (256, 64), (64, 256), (256, 128), (64,)
    return [rounded(jax.random.normal(key, shape) / 4) for key, shape in zip(keys, shapes, strict=True)]


MESHES = pytest.mark.parametrize("mesh", [None, {"data": 4}], ids=["one device", "mesh"])


@pytest.mark.parametrize("batch", [4, 52, 64])
@MESHES
def test_the_matmul_of_few_rows_is_plain(mesh, batch, mlp):
    """With rows that are not there, few and some, and with none."""
    x, weight = mlp[0][:batch], mlp[3]
    ours = few_rows.matmul(x, weight, Sharding(make_mesh(mesh)) if mesh else UNSHARDED, interpret=True)
    np.testing.assert_allclose(ours, few_rows.matmul(x, weight, UNSHARDED), atol=2e-5)
    steps = jnp.round(127 * weight / jnp.max(weight)).astype(jnp.int8)
    ours = few_rows.matmul(x, steps, UNSHARDED, interpret=True)
    np.testing.assert_allclose(ours, few_rows.matmul(x, steps, UNSHARDED), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@MESHES
def test_the_gated_matmuls_of_few_rows_are_plain(mesh, scaled, updated, mlp):
    x, gate, up, _, low, b, gain = (each[:52] if len(each) == 64 else each for each in mlp)
    scales = [jnp.linspace(0.5, 1, 128), jnp.linspace(1, 2, 128)] if scaled else []
    y = [jnp.einsum("BTX,XY->BTY", x, weight) for weight in (gate, up)]
    y = [each * scale[None, None] for each, scale in zip(y, scales, strict=True)] if scaled else y
    if updated:
        halves = slice(128), slice(128, 256)
        y = [y[j] + jnp.einsum("BR,RF,B->BF", low[:, ranks], b[ranks], gain)[:, None] for j, ranks in enumerate(halves)]
    sharding = Sharding(make_mesh(mesh)) if mesh else UNSHARDED
    ours = few_rows.gated(x, (gate, up), scales, (low, b, gain) if updated else (), sharding, interpret=True)
    np.testing.assert_allclose(ours, jax.nn.silu(y[0]) * y[1], atol=1e-4)


@pytest.mark.fast
def test_a_token_of_each_row_for_a_gpu_is_two_kernels(mlp, monkeypatch):
    """Of sixteen bits, one token a row, on one device, up to 64 rows; otherwise plain matmuls."""
    monkeypatch.setattr(Sharding, "platform", "gpu")
    x, *weights = (each.astype(jnp.bfloat16) for each in mlp[:4])
    gate, up, down = (Linear("mlp", "D->F", lambda *_, weight=weight: weight) for weight in weights)

    def step(x, sharding=UNSHARDED):
        h = silu_gated(x, gate, up, {}, None, sharding)
        return down.outputs(jnp.concatenate([h, h], -1), {}, sharding)[0]

    text = lowered_for_a_gpu(step, x)
    assert text.count("@__gpu$xla.gpu.triton(") == 2 and "stablehlo.dot_general" not in text
    fsdp = functools.partial(step, sharding=Sharding(make_mesh({"fsdp": 2}), sampling=True))
    for plain in (
        (step, jnp.concatenate([x, x], 1)),
        (step, x.astype(jnp.float32)),
        (fsdp, x),
        (step, jnp.concatenate([x, x])),
    ):
        text = jax.jit(plain[0]).trace(plain[1]).lower().as_text()
        assert "triton" not in text and text.count("stablehlo.dot_general") == 3


@pytest.mark.gpu
def test_the_kernels_of_few_rows_themselves_are_plain(mlp):
    """Against float32 from the same numbers."""
    x, gate, up, down, low, b, gain = (each.astype(jnp.bfloat16) for each in mlp)
    ours = few_rows.matmul(x, down, UNSHARDED), few_rows.gated(x, (gate, up), [], (low, b, gain), UNSHARDED)
    with jax.default_matmul_precision("highest"):
        x, gate, up, down, low, b, gain = (each.astype(jnp.float32) for each in (x, gate, up, down, low, b, gain))
        y = [x[:, 0] @ weight for weight in (gate, up)]
        y = [y[j] + gain[:, None] * (low[:, ranks] @ b[ranks]) for j, ranks in enumerate((slice(128), slice(128, 256)))]
        plain = x[:, 0] @ down, jax.nn.silu(y[0]) * y[1]
    for mine, other in zip(ours, plain, strict=True):
        assert jnp.linalg.norm(mine[:, 0].astype(jnp.float32) - other) < 1e-2 * jnp.linalg.norm(other)
