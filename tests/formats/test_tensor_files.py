"""Checkpoints are streamed: every byte read once, from a directory or a bucket, and little memory beside the arrays."""

import json
import os
import subprocess
import sys

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from fsspec.implementations.local import LocalFileSystem

from em_jax.base.errors import UserError
from em_jax.formats.checkpoint import SINGLE, load_model, save_model, stored_tensors
from em_jax.formats.hub import find_model
from em_jax.formats.model_config import config_fields, parse_config
from em_jax.formats.tensor_files import open_checkpoint
from em_jax.model.parameters import random_model, weights_of
from em_jax.model.sharding import Sharding, make_mesh
from em_jax.runs.loading import load


class Bucket(LocalFileSystem):
    """Stands in for gcsfs: gs://NAME is the folder `root`/NAME, and every range that is read is noted."""

    protocol = ("gs", "gcs")
    root = ""
    ranges: list = []

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        for protocol in ("gs://", "gcs://"):
            if path.startswith(protocol):
                path = f"{cls.root}/{path.removeprefix(protocol)}"
        return LocalFileSystem._strip_protocol(path)

    def cat_file(self, path, start=None, end=None, **kwargs):
        data = super().cat_file(path, start, end, **kwargs)
        assert len(data) == end - start
        self.ranges.append((os.path.basename(path), start, end))
        return data


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    for protocol in Bucket.protocol:
        fsspec.register_implementation(protocol, Bucket, clobber=True)
    monkeypatch.setattr(Bucket, "root", str(tmp_path))
    monkeypatch.setattr(Bucket, "ranges", [])
    return tmp_path


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


@pytest.mark.parametrize("mesh", [None, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_every_byte_is_read_once(mesh, bucket):
    # 100 rows do not divide over eight devices.
    config = parse_config(tiny.SHAPE | {"vocab_size": 100})
    save_model(random_model(config, jax.random.key(0), stacked=True), bucket / "there")
    tiny.split(bucket / "there", 4)
    from etils import epath

    sharding = Sharding(make_mesh(mesh)) if mesh else Sharding()
    model = load_model(epath.Path("gs://there"), stacked=True, sharding=sharding)
    for path in (bucket / "there").glob("*.safetensors"):
        read = sorted((start, end) for name, start, end in Bucket.ranges if name == path.name and end > start)
        assert read[0][0] == 0 and read[-1][1] == path.stat().st_size
        assert all(one[1] == other[0] for one, other in zip(read, read[1:], strict=False))
    for ours, theirs in zip(leaves(model), leaves(load_model(bucket / "there", stacked=True)), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_model_in_a_bucket_answers(bucket):
    (bucket / "models").symlink_to(find_model("organism").parent)
    engine = load("gs://models/weights")
    ours = engine.choice_logprobs([[{"role": "user", "content": "Hi"}]], ["yes", "no"])
    theirs = load("organism").choice_logprobs([[{"role": "user", "content": "Hi"}]], ["yes", "no"])
    assert np.array_equal(ours, theirs)
    with pytest.raises(UserError, match="expected a folder with a checkpoint"):
        load("gs://models/nothing")


@pytest.mark.fast
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:6],
        lambda data: (10**9).to_bytes(8, "little") + data[8:],
        lambda data: (2).to_bytes(8, "little") + b"[]",
        lambda data: (4).to_bytes(8, "little") + b"{}{}",
        lambda data: data.replace(b'"shape":[3,2]', b'"shape":[3,9]'),
        lambda data: data.replace(b'"shape":[3,2]', b'"shape":[3,"]'),
        lambda data: data.replace(b'"data_offsets":[0,24]', b'"data_offsets":[24,0]'),
        lambda data: data.replace(b'"data_offsets":[0,24]', b'"data_offsets":[9,24]'),
        lambda data: data.replace(b'"dtype":"F32"', b'"dtipe":"F32"'),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(damage, tmp_path):
    whole = safetensors.numpy.save({"x": np.arange(6, dtype=np.float32).reshape(3, 2)})
    (tmp_path / SINGLE).write_bytes(whole)
    stored = open_checkpoint(tmp_path)[0]["x"]
    assert np.array_equal(stored.rows(1, 3), [[2, 3], [4, 5]])
    (tmp_path / SINGLE).write_bytes(damage(whole))
    with pytest.raises(UserError, match="not a readable safetensors file") as refused:
        open_checkpoint(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    "offsets", [[(0, 8), (4, 12)], [(0, 8), (0, 8)], [(0, 8), (12, 20)], [(4, 12), (12, 20)], [(0, 8), (8, 16)]]
)
def test_offsets_are_judged_as_the_reference_library_does(offsets, tmp_path):
    """Overlaps, one tensor on another, gaps, a late begin: refused by both. The last is right where the file ends."""
    header = {
        str(number): {"dtype": "F32", "shape": [2], "data_offsets": list(it)} for number, it in enumerate(offsets)
    }
    text = json.dumps(header).encode()
    for more in (0, 4):
        data = len(text).to_bytes(8, "little") + text + bytes(max(stop for _, stop in offsets) + more)
        (tmp_path / SINGLE).write_bytes(data)
        try:
            safetensors.numpy.load(data)
        except safetensors.SafetensorError:
            with pytest.raises(UserError, match="not a readable safetensors file .*expected|tensors of"):
                open_checkpoint(tmp_path)
        else:
            assert set(open_checkpoint(tmp_path)[0]) == set(header) and offsets[1] == (8, 16) and not more


@pytest.mark.fast
def test_a_header_of_too_many_tensors_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    entry = b', "%d": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    text = b"{" + b"".join(entry % number for number in range(200_001))[2:] + b"}"
    (tmp_path / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text)
    monkeypatch.setattr("em_jax.formats.tensor_files.json.loads", None)
    with pytest.raises(UserError, match=r"not a readable safetensors file \(200,001 tensors, at most 200,000 are read"):
        open_checkpoint(tmp_path)


MEASURE = """
import json, pathlib, re, sys
from em_jax.base import runtime
runtime.configure_jax()
import jax, jax.numpy as jnp
from em_jax.model.sharding import Sharding, make_mesh
from em_jax.formats.checkpoint import load_model

small, large, mesh, dtype, quantization = json.loads(sys.argv[1])
options = {"dtype": dtype, "stacked": True, "quantization": quantization, "sharding": Sharding(make_mesh(mesh))}
load_model(pathlib.Path(small), **options)

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

def read():
    return int(re.search(r"rchar: (\\d+)", pathlib.Path("/proc/self/io").read_text())[1])

pathlib.Path("/proc/self/clear_refs").write_text("5")
before, bytes_before = memory("VmRSS"), read()
model = load_model(pathlib.Path(large), **options)
found = {"arrays": sum(leaf.nbytes for leaf in jax.tree.leaves(model)), "read": read() - bytes_before}
print(json.dumps(found | {"peak": memory("VmHWM") - before}))
"""
"""A process that loads a small checkpoint, for what is allocated once, and measures loading a large one."""


def made(directory, layers: int, width: int, vocabulary: int):
    """A bfloat16 checkpoint of this shape whose numbers are all the same; its bytes and its largest tensor's."""
    raw = tiny.SHAPE | {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    config = parse_config(raw | {"vocab_size": vocabulary, "head_dim": width // 4})
    shapes = {}
    for weight in weights_of(config, stacked=True):
        shapes |= {stored.name: stored.shape for stored in stored_tensors(weight, config)}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config_fields(config)))
    one = np.ones(max(np.prod(shape) for shape in shapes.values()), jnp.bfloat16)
    # One buffer serves every tensor: the test itself needs no memory to speak of.
    tensors = {name: one[: np.prod(shape)].reshape(shape) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, directory / SINGLE)
    return (directory / SINGLE).stat().st_size, one.nbytes


def streamed(tmp_path, layers, width, vocabulary, **options):
    made(tmp_path / "small", 1, 64, 128)
    total, largest = made(tmp_path / "large", layers, width, vocabulary)
    asked = {"mesh": None, "dtype": "bfloat16", "quantization": "none"} | options
    words = [
        str(tmp_path / "small"),
        str(tmp_path / "large"),
        *(asked[name] for name in ("mesh", "dtype", "quantization")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(words)],
        capture_output=True,
        text=True,
        # Kept programs would be read too.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"{total} bytes, largest tensor {largest}: {found}")
    # Besides the weights: config.json and /proc.
    assert total <= found["read"] < total + 20_000
    return found, largest


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="resident memory is read from /proc")
# On a CPU the devices' memory is the process's own: what they hold while they pass on and turn a tensor counts as well.
@pytest.mark.parametrize(
    "options", [{"mesh": {"fsdp": 8}}, {"mesh": {}, "dtype": "float32", "quantization": "int8"}], ids=["fsdp", "int8"]
)
def test_little_memory_beside_the_arrays(options, tmp_path):
    found, largest = streamed(tmp_path, 8, 1024, 16384, **options)
    assert found["peak"] - found["arrays"] < 8 * largest + 2**26


@pytest.mark.long
def test_little_memory_beside_two_gigabytes(tmp_path):
    found, largest = streamed(tmp_path, 48, 1152, 32768, mesh={"fsdp": 8})
    assert found["arrays"] > 2 * 10**9
    assert found["peak"] - found["arrays"] < 8 * largest + 2**26
