"""Inputs that are no files, or far too large, are one line at once."""

import os
import socket

import pytest

from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.config import read_toml
from em_jax.formats.hub import find_model
from em_jax.runs import adapters, sources

pytestmark = pytest.mark.fast


def make(kind, path):
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    return path


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device", "a directory"])
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    single = make(kind, tmp_path / "given")
    for read in (read_toml, lambda path: files.read_object(path, "an index")):
        with pytest.raises(UserError, match=f"expected a file, found {kind}"):
            read(single)
    folder = tmp_path / "model"
    folder.mkdir()
    make(kind, folder / "model.safetensors")
    if kind != "a directory":
        for read in (find_model, sources.suite_directory, lambda name: adapters.find(name)):
            with pytest.raises(UserError, match=f"expected a file, found {kind}"):
                read(str(folder))


def test_what_declares_too_much_is_not_read(tmp_path, monkeypatch):
    """Sparse files: of their declared bytes none is on the disk."""
    for name, size in (("rows.jsonl", files.MOST_ROW_BYTES + 1), ("index.json", files.MOST_JSON_BYTES + 1)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    with pytest.raises(UserError, match="refused, 4,294,967,297 bytes"):
        files.read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="--data: refused"):
        files.check_input(tmp_path / "rows.jsonl", "--data")
    with pytest.raises(UserError, match="67,108,865 bytes, at most"):
        files.read_object(tmp_path / "index.json", "an index")
