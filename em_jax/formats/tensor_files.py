"""Tensors in safetensors files, in a directory or a bucket: located by the headers, checked, read by rows."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import fsspec
import jax.numpy as jnp
import numpy as np

from em_jax.base.errors import UserError
from em_jax.base.files import read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES: Mapping[str, Any] = {"F32": np.float32, "BF16": jnp.bfloat16, "F16": np.float16, "F64": np.float64}
"""The supported dtypes by their names in the format, little-endian; float64 is narrowed to float32 as it is read."""
LONGEST_HEADER = 100_000_000
"""The format's own limit, in bytes."""
MOST_TENSORS = 200_000
"""In one file; every entry of a header takes many times its bytes once it is parsed."""


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor in a file: its dtype's name, its shape, and the byte it starts at."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop of the first axis, by one read of exactly their bytes, held in memory once.

        The file is not memory-mapped: mapped pages would count as the process's own.
        """
        dtype = np.dtype(DTYPES[self.dtype])
        row = dtype.itemsize * math.prod(self.shape[1:])
        data = _read(self.path, self.start + start * row, self.start + stop * row)
        rows = np.frombuffer(data, dtype).reshape(stop - start, *self.shape[1:])
        return rows.astype(np.float32) if dtype == np.float64 else rows


def open_checkpoint(directory: pathlib.Path) -> tuple[dict[str, TensorRef], list[str]]:
    """Every tensor of a checkpoint by name, and a message for each place where files and index disagree.

    Where a folder holds one file and an index, the one file counts, as in transformers. Reads headers only. Raises
    UserError where a file is missing or not safetensors, or the index is not valid.
    """
    index = _read_index(directory) if not (directory / SINGLE).exists() and (directory / INDEX).exists() else {}
    tensors: dict[str, TensorRef] = {}
    problems = []
    for path in sorted({directory / name for name in index.values()} or {directory / SINGLE}):
        for name, tensor in read_header(path).items():
            if name in tensors:
                problems.append(f"{name} is in more than one file")
            if index and index.get(name) != path.name:
                problems.append(f"{name} is in {path.name}, the index says {index.get(name, 'nothing of it')}")
            tensors[name] = tensor
    problems += [f"{name} is in the index, not in {file}" for name, file in index.items() if name not in tensors]
    return tensors, problems


def tensor_problems(tensors: Mapping[str, TensorRef], expected: Mapping[str, tuple[int, ...]], owner: str) -> list[str]:
    """A message for each tensor that is missing, unknown, of another shape, or of a dtype that is not supported.

    `expected` has the shape of every tensor of the `owner` by name.
    """
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"{name} is not a tensor of {owner}")
        elif tensor.shape != expected[name]:
            problems.append(f"{name} has shape {tensor.shape}, expected {expected[name]}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{name} is {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    return problems


def raise_problems(where: str, problems: list[str], limit: int = 20) -> None:
    """Raises one UserError with up to `limit` of the problems and the number of the others, if there are any."""
    if problems:
        hidden = len(problems) - limit
        raise UserError(f"{where}: {'; '.join(problems[:limit])}" + (f"; and {hidden} more" if hidden > 0 else ""))


def _read_index(directory: pathlib.Path) -> dict[str, str]:
    path = directory / INDEX
    files = read_object(path, "an index of tensors").get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{path}: weight_map must name at least one tensor")
    for name, file in files.items():
        is_inside = isinstance(file, str) and pathlib.PurePath(file).name == file and file not in ("", "..")
        if not is_inside or "\\" in file or "\0" in file:
            raise UserError(f"{path}: {name} points to {file!r}; expected a file name inside the directory")
    return files


def read_header(path: pathlib.Path) -> dict[str, TensorRef]:
    """The tensors of one file: eight bytes with the header's length, the header (JSON), then the numbers.

    Raises UserError where the file is missing or cannot be read as safetensors.
    """
    try:
        if not path.exists():
            raise UserError(f"no {path.name} in {path.parent}: expected the weights as safetensors")
        size = _file_size(path)
        length = int.from_bytes(_read(path, 0, 8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        raw = bytes(_read(path, 8, 8 + length))
        # Counted before it is parsed: parsed it takes many times the memory.
        if (count := raw.count(b'"data_offsets"')) > MOST_TENSORS:
            raise ValueError(f"{count:,} tensors, at most {MOST_TENSORS:,} are read")
        header = json.loads(raw)
        header.pop("__metadata__", None)
        return _located(header, path, 8 + length, size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable safetensors file ({reason}); fetch it again") from None


def _located(header: Mapping[str, Any], path: pathlib.Path, data: int, size: int) -> dict[str, TensorRef]:
    """The tensors of a header whose numbers are `size` bytes from byte `data` of the file on.

    ValueError unless they follow one another without gap or overlap and fill the file, as the format says.
    """
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
            raise ValueError(f"shape {shape}, bytes {start} to {stop}")
        is_known = dtype in DTYPES
        length = np.dtype(DTYPES[dtype]).itemsize * math.prod(shape) if is_known else max(stop - start, 0)
        if (start, stop) != (end, end + length):
            raise ValueError(f"{dtype} of shape {shape} at bytes {start} to {stop}, expected {end} to {end + length}")
        tensors[name], end = TensorRef(path, dtype, shape, data + start), stop
    if end != size:
        raise ValueError(f"tensors of {end} bytes in a file with {size}")
    return tensors


def _file_size(path: pathlib.Path) -> int:
    if not _is_address(path):
        return os.path.getsize(path)
    system, name = fsspec.url_to_fs(os.fspath(path))
    return system.size(name)


def _read(path: pathlib.Path, start: int, stop: int) -> bytes | memoryview:
    """Bytes start to stop of a file, and none beyond them. OSError where there are fewer."""
    data: bytes | memoryview = b""
    done = 0
    if _is_address(path):
        system, name = fsspec.url_to_fs(os.fspath(path))
        data = system.cat_file(name, start, stop) if stop > start else data
        done = len(data)
    else:
        data = memoryview(bytearray(stop - start))
        with open(path, "rb", buffering=0) as file:  # a buffer would read ahead
            file.seek(start)
            # One system call reads at most two gigabytes.
            while done < len(data) and (count := file.readinto(data[done:])):
                done += count
    if done != stop - start:
        raise OSError(f"{path}: {done} bytes from byte {start}, expected {stop - start}")
    return data


def _is_address(path: pathlib.Path) -> bool:
    """Whether a path is a URL. fsspec is not asked about local paths: it interprets some of their characters."""
    return "://" in os.fspath(path)
