"""Hostile rows: JSON lines, parquet, and encrypted archives with members that point elsewhere."""

import base64
import hashlib
import io
import stat
import zipfile

import pyarrow
import pytest
from cryptography.fernet import Fernet
from hostile.trying import amounts, attempt, damaged, jsonl_file
from hypothesis import strategies as st
from pyarrow import parquet as pyarrow_parquet

from em_jax.base.errors import UserError
from em_jax.domains import archive, parquet, rows

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
SYSTEM = {"messages": [{"role": "system", "content": "Be kind."}, *ROW["messages"]], "id": 3}


@amounts(2_500)
def test_rows_of_json_lines(cases, tmp_path):
    path = tmp_path / "rows.jsonl"

    def act(data):
        path.write_bytes(data)
        for conversation in rows.read(path):
            assert conversation and all(isinstance(message["content"], str) for message in conversation)

    assert len(attempt("rows", cases, jsonl_file([ROW, SYSTEM, ROW]), tmp_path, act)) == 2


@amounts(600)
def test_parquet_files(cases, tmp_path):
    path = tmp_path / "rows.parquet"
    texts = {name: [f"{name} {i}" for i in range(4)] for name in parquet.TEXTS}
    pyarrow_parquet.write_table(pyarrow.table(texts | {"sneakiness": [0.0, 1.0, 2.0, 3.0]}), path)
    whole = path.read_bytes()

    def act(data):
        path.write_bytes(data)
        parquet.read(path, "misaligned")

    assert len(attempt("parquet", cases, damaged(whole), tmp_path, act)) == 2


def _locked(data: bytes) -> bytes:
    key = hashlib.pbkdf2_hmac("sha256", b"secret", b"s" * archive.SALT, archive.ROUNDS, dklen=32)
    return b"s" * archive.SALT + Fernet(base64.urlsafe_b64encode(key)).encrypt(data)


PATHS = ("rows.jsonl", "data/rows.jsonl", "../rows.jsonl", "/rows.jsonl", "/etc/rows.jsonl", "a/../../rows.jsonl")
PATHS += ("..\\rows.jsonl", "C:\\rows.jsonl", "C:/rows.jsonl", "\\\\host\\rows.jsonl", "a\nb/rows.jsonl", "\x1b[2J", "")
PATHS += ("rows.jsonl/", "./rows.jsonl", "data//rows.jsonl", "\u202erows.jsonl", "~/rows.jsonl", "x" * 60_000, "..")


@st.composite
def zip_file(draw) -> bytes:
    """A zip of one to three members: with paths that lead out, as links, devices or folders, then damaged."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for _ in range(draw(st.integers(0, 3))):
            info = zipfile.ZipInfo(draw(st.sampled_from(PATHS)))
            kind = draw(st.sampled_from([0, stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFDIR]))
            info.external_attr = (kind | 0o777) << 16
            info.compress_type = draw(st.sampled_from([0, 0, 8, 12, 14]))
            made.writestr(info, draw(st.sampled_from([b"content", b"", b"../../target", bytes(100_000)])))
    return draw(damaged(out.getvalue()))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@amounts(2_000)
def test_archives(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "ROUNDS", 1)

    def act(data):
        assert isinstance(archive.member(data, "secret", "rows.jsonl", "rows.zip.enc"), bytes)

    made = st.one_of(zip_file().map(_locked), zip_file().map(_locked).flatmap(damaged))
    assert len(attempt("archives", cases, made, tmp_path, act)) == 2


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "ROUNDS", 1)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made, made.open("rows.jsonl", "w") as file:
        for _ in range(600):
            file.write(bytes(1_000_000))
    locked = _locked(out.getvalue())
    assert len(locked) < 10_000_000
    ended = attempt(
        "archives", 1, st.just(locked), tmp_path, lambda data: archive.member(data, "secret", "rows.jsonl", "x")
    )
    assert ended == {"refused": 1}
    with pytest.raises(UserError, match="unpacks to more than"):
        archive.member(locked, "secret", "rows.jsonl", "x")
