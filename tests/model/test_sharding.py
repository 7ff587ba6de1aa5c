"""The sharding table and the mesh."""

import jax
import pytest
from jax.sharding import PartitionSpec

from em_jax.base.errors import UsageError
from em_jax.model.sharding import LETTERS, MESH_AXES, TABLE, UNSHARDED, Sharding, make_mesh

pytestmark = pytest.mark.fast


def test_the_table_speaks_of_the_mesh_and_the_letters_of_the_table():
    assert {axis for columns in TABLE.values() for column in columns for axis in column} <= set(MESH_AXES)
    assert set(LETTERS.values()) <= set(TABLE)


def test_a_mesh_axis_is_used_once():
    assert Sharding().spec(("batch", "length", None)) == PartitionSpec(("data", "fsdp"), None, None)
    assert Sharding().spec(("width", "mlp")) == PartitionSpec("fsdp", "tensor")
    with pytest.raises(ValueError, match="twice"):
        Sharding().spec(("batch", "width"))


def test_meshes():
    assert jax.device_count() == 8
    assert dict(make_mesh().shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert dict(make_mesh({"tensor": 2}).shape) == {"data": 1, "fsdp": 1, "tensor": 2}
    assert make_mesh({"data": 1}) is None
    assert Sharding(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})).batch_shards == 4
    assert UNSHARDED.batch_shards == 1


def test_a_mesh_over_given_devices():
    devices = jax.devices()[2:4]
    assert make_mesh({"fsdp": 2}, devices).devices.ravel().tolist() == devices
    assert make_mesh(None, devices[:1]).size == 1
    with pytest.raises(UsageError, match="needs 4 devices, found 2"):
        make_mesh({"tensor": 4}, devices)


def test_sampling_moves_sums_of_activations_and_training_weights():
    training, sampling = Sharding(), Sharding(sampling=True)
    residual = ("residual_batch", "length", "residual_width")
    assert training.spec(residual) == PartitionSpec(("data", "fsdp"), None, None)
    assert sampling.spec(residual) == PartitionSpec("data", None, "fsdp")
    for letters in ("VD", "LDNH", "LDF", "LFD"):
        axes = [LETTERS.get(letter) for letter in letters]
        assert training.spec(axes) == sampling.spec(axes)


@pytest.mark.parametrize("sizes", [{"fsdp": 16}, {"model": 2}, {"fsdp": 0}, {"data": 3, "fsdp": 3}])
def test_meshes_that_cannot_be(sizes):
    with pytest.raises(UsageError, match="mesh"):
        make_mesh(sizes)
