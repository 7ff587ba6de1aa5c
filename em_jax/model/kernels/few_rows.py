"""Matmuls of one new token a row: kernels of an NVIDIA GPU, written in Pallas, that keep a block's sums on the chip.

The compiler divides every sum among many programs and writes and reads their float32 parts; `matmul` has two parts.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from em_jax.model.kernels.per_device import per_device
from em_jax.model.sharding import Sharding

ROWS = 64
"""The most rows of a device. More are bound by arithmetic, not by memory, and want the compiler's larger tiles."""
BLOCK = 64
"""Outputs of a program, and inputs that it reads at once: three stages take at most 72 KiB of shared memory."""
HALVES = 2
"""Programs that share a sum of `matmul`, whose outputs, a model's width, make too few blocks to fill the chip."""


def serves(rows: int, inputs: int, outputs: int, dtype: DTypeLike, sharding: Sharding) -> bool:
    """Whether the kernels take so many rows in this dtype, and weights of these sizes that are split over no device."""
    whole = sharding.mesh is None or sharding.mesh.shape["data"] == sharding.size
    sizes = rows <= ROWS * sharding.batch_shards and inputs % (BLOCK * HALVES) == 0 and outputs % BLOCK == 0
    return sharding.platform == "gpu" and whole and sizes and jnp.dtype(dtype).itemsize == 2


def power_of_two(size: int) -> int:
    """The least power of two that is at least `size` and 16, the smallest operand of tensor cores."""
    return max(16, 1 << (size - 1).bit_length())


def matmul(
    x: Float[Array, "B T X"], weight: Float[Array, "X Y"], sharding: Sharding, *, interpret: bool = False
) -> Float[Array, "B T Y"]:
    """x W in the dtype of `x`; by the kernel where it serves and the outputs are no more than the inputs."""
    inputs, outputs = weight.shape
    served = x.shape[1] == 1 and inputs >= outputs and serves(len(x), inputs, outputs, x.dtype, sharding)
    if not (served or interpret):
        return jnp.einsum("BTX,XY->BTY", x, weight.astype(x.dtype))
    return _in_blocks(x, [weight], [], (), HALVES, sharding, interpret)


def gated(
    x: Float[Array, "B 1 D"],
    weights: Sequence[Float[Array, "D F"]],
    scales: Sequence[Float[Array, "F"]],
    update: tuple[Float[Array, "B JR"], Float[Array, "JR F"], Float[Array, "B"]] | tuple[()],
    sharding: Sharding,
    *,
    interpret: bool = False,
) -> Float[Array, "B 1 F"]:
    """silu(x W_0) * (x W_1) of one token a row.

    Int8 weights have `scales` of their outputs; `update` is one adapter's for both: x A side by side, the B's one above
    the other, and the gain of each row, which multiplies (x A) B. Sums and updates are float32. `interpret` runs the
    kernel in Python, on any device.
    """
    return _in_blocks(x, weights, scales, update, 1, sharding, interpret)


def _in_blocks(
    x: Array, weights: Sequence[Array], scales: Sequence[Array], update: tuple, parts: int, sharding: Sharding,
    interpret: bool,
) -> Array:  # fmt: skip
    """A program for each block of outputs and each part of the inputs; the parts' sums are added after."""
    axes: list[tuple[str | None, ...]] = [("batch", None), *[(None, None)] * len(weights), *[(None,)] * len(scales)]
    axes += [("batch", None), (None, None), ("batch",)] if update else []

    def on_device(x: Array, *others: Array) -> Array:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        (batch, inputs), outputs, rows = x.shape, others[0].shape[1], power_of_two(len(x))

        specs = [pl.BlockSpec((rows, inputs // parts), lambda _, part: (0, part))]
        specs += [pl.BlockSpec((inputs // parts, BLOCK), lambda block, part: (part, block))] * len(weights)
        specs += [pl.BlockSpec((BLOCK,), lambda block, _: (block,))] * len(scales)
        if update:
            ranks = len(update[1])
            specs.append(pl.BlockSpec((rows, ranks), lambda *_: (0, 0)))
            specs.append(pl.BlockSpec((ranks, BLOCK), lambda block, _: (0, block)))
            specs.append(pl.BlockSpec((rows,), lambda *_: (0,)))
        sums = pl.pallas_call(
            functools.partial(_kernel, batch=batch, weights=len(weights), scales=len(scales)),
            grid=(outputs // BLOCK, parts),
            in_specs=specs,
            out_specs=pl.BlockSpec((None, rows, BLOCK), lambda block, part: (part, 0, block)),
            out_shape=jax.ShapeDtypeStruct((parts, batch, outputs), x.dtype if parts == 1 else jnp.float32),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
            interpret=interpret,
            name="few_rows",
        )(x, *others)
        return sums.sum(0).astype(x.dtype)

    return per_device(on_device, (x[:, 0], *weights, *scales, *update), axes, sharding)[:, None]


def _kernel(x_ref: Any, *operands: Any, batch: int, weights: int, scales: int) -> None:
    """x [ROWS, X], weights [X, BLOCK], scales [BLOCK], an update's x A [ROWS, J R], B's [J R, BLOCK] and gains [ROWS].

    The output is [ROWS, BLOCK]: the one weight's, or that of `gated`.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (rows, inputs), *refs, out_ref = x_ref.shape, *operands
    present = (jnp.arange(rows) < batch)[:, None]

    def add(i: Array, sums: list[Array]) -> list[Array]:
        block = pl.ds(i * BLOCK, BLOCK)
        x = triton.load(x_ref.at[:, block], mask=present, other=0.0)
        read = (ref[block, :].astype(x.dtype) for ref in refs[:weights])
        return [total + triton.dot(x, weight, allow_tf32=False) for total, weight in zip(sums, read)]

    y = jax.lax.fori_loop(0, inputs // BLOCK, add, [jnp.zeros((rows, BLOCK), jnp.float32)] * weights)
    for j, ref in enumerate(refs[weights : weights + scales]):
        y[j] *= ref[:][None]
    if refs[weights + scales :]:
        low_ref, b_ref, gain_ref = refs[weights + scales :]
        gain = triton.load(gain_ref.at[:], mask=present[:, 0], other=0.0)[:, None]
        rank = low_ref.shape[1] // weights
        for j, start in itertools.product(range(weights), range(0, rank, BLOCK)):
            ranks = pl.ds(j * rank + start, min(rank, BLOCK))
            low = triton.load(low_ref.at[:, ranks], mask=present, other=0.0)
            y[j] += triton.dot(low, b_ref[ranks, :], allow_tf32=False) * gain
    result = y[0] if weights == 1 else jax.nn.silu(y[0]) * y[1]
    triton.store(out_ref.at[:, :], result.astype(out_ref.dtype), mask=present)
