"""Tensors as they lie in safetensors files, in a directory or a bucket: found by their headers, read by rows."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import jax.numpy as jnp
import numpy as np

from em_jax.base.errors import UserError
from em_jax.base.files import read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES: Mapping[str, Any] = {"F32": np.float32, "BF16": jnp.bfloat16, "F16": np.float16}
"""The dtypes that are read, by the names of the format; numbers are little-endian."""
LONGEST_HEADER = 100_000_000
"""The format's own bound, in bytes."""


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor in a file: its dtype's name, its shape, and the byte it starts at."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop of the first axis, by one read of exactly their bytes. Memory: those bytes once.

        Nothing is mapped into memory: mapped pages would count as the process's own.
        """
        dtype = np.dtype(DTYPES[self.dtype])
        row = dtype.itemsize * math.prod(self.shape[1:])
        data = _read(self.path, self.start + start * row, self.start + stop * row)
        return np.frombuffer(data, dtype).reshape(stop - start, *self.shape[1:])


def open_checkpoint(directory: pathlib.Path) -> tuple[dict[str, TensorRef], list[str]]:
    """Every tensor of a checkpoint by name, and where its files and its index disagree; reads headers alone.

    Raises UserError where a file is missing or no safetensors, or the index is none.
    """
    listed = _index(directory) if (directory / INDEX).exists() else None
    paths = sorted({directory / name for name in listed.values()} if listed else {directory / SINGLE})
    found: dict[str, TensorRef] = {}
    problems = []
    for path in paths:
        for name, tensor in _tensors(path):
            if name in found:
                problems.append(f"{name} is in more than one file")
            if listed is not None and listed.get(name) != path.name:
                problems.append(f"{name} is in {path.name}, the index says {listed.get(name, 'nothing of it')}")
            found[name] = tensor
    problems += [f"{name} is in the index, not in {listed[name]}" for name in listed or () if name not in found]
    return found, problems


def _index(directory: pathlib.Path) -> dict[str, str]:
    path = directory / INDEX
    listed = read_object(path, "an index of tensors").get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{path}: weight_map must name at least one tensor")
    for name, file in listed.items():
        inside = isinstance(file, str) and pathlib.PurePath(file).name == file and file not in ("", "..")
        if not inside or "\\" in file or "\0" in file:
            raise UserError(f"{path}: {name} points to {file!r}; expected a file name inside the directory")
    return listed


def _tensors(path: pathlib.Path) -> Iterator[tuple[str, TensorRef]]:
    """The tensors of one file: eight bytes with the header's length, the header (JSON), then the numbers."""
    try:
        if not path.exists():
            raise UserError(f"no {path.name} in {path.parent}: expected the weights as safetensors")
        size = _size(path)
        length = int.from_bytes(_read(path, 0, 8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(bytes(_read(path, 8, 8 + length)))
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, entry, 8 + length, size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable safetensors file ({reason}); fetch it again") from None
    yield from tensors.items()


def _stored(path: pathlib.Path, entry: Mapping[str, Any], data: int, size: int) -> TensorRef:
    """One entry of a header whose numbers begin at byte `data`. ValueError where they cannot be in the file."""
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError(f"shape {shape}, bytes {start} to {stop}")
    dtype = str(entry["dtype"])
    known = DTYPES.get(dtype)
    if data + stop > size or (known and stop - start != np.dtype(known).itemsize * math.prod(shape)):
        raise ValueError(f"{dtype} of shape {shape} at bytes {start} to {stop} of {size - data}")
    return TensorRef(path, dtype, shape, data + start)


def _size(path: pathlib.Path) -> int:
    if not _elsewhere(path):
        return os.path.getsize(path)
    system, name = fsspec.url_to_fs(os.fspath(path))
    return system.size(name)


def _read(path: pathlib.Path, start: int, stop: int) -> bytes | memoryview:
    """Bytes start to stop of a file. OSError where there are fewer."""
    if not _elsewhere(path):
        data = _read_here(path, start, stop)
    else:
        system, name = fsspec.url_to_fs(os.fspath(path))
        data = system.cat_file(name, start, stop) if stop > start else b""  # type: ignore[assignment]
    if len(data) != stop - start:
        raise OSError(f"{path}: {len(data)} bytes from {start} on, expected {stop - start}")
    return data


def _elsewhere(path: pathlib.Path) -> bool:
    """Whether a path is an address. fsspec reads more into a path on this machine than it may mean."""
    return "://" in os.fspath(path)


def _read_here(path: pathlib.Path, start: int, stop: int) -> memoryview:
    """Bytes start to stop of a file on this machine, or as many as there are; a buffered file would read ahead."""
    data = memoryview(bytearray(stop - start))
    done = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        # One call of the system gives two gigabytes at most.
        while done < len(data) and (count := file.readinto(data[done:])):
            done += count
    return data[:done]
