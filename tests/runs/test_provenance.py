import json

import pytest

from em_jax.base import files
from em_jax.runs import provenance

pytestmark = pytest.mark.fast


def test_a_file_is_known_by_hash_and_rows(tmp_path):
    path = files.write_atomic(tmp_path / "rows.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    entry = provenance.file_input(path)
    assert entry["rows"] == 2 and entry["bytes"] == 19 and len(entry["sha256"]) == 64
    files.write_atomic(path, '{"a": 1}\n{"a": 3}\n')
    assert provenance.differing({"rows": entry}, {"rows": provenance.file_input(path)}) == ["rows"]
    assert provenance.differing({"rows": entry}, {"rows": entry | {"path": "elsewhere"}, "new": {}}) == []


def test_made_rows_are_known_by_content():
    one, two = provenance.rows_input("made", [{"a": 1}]), provenance.rows_input("made", [{"a": 2}])
    assert one["rows"] == two["rows"] == 1 and one["sha256"] != two["sha256"]


def test_starts_and_times_add_up(tmp_path):
    for _ in range(2):
        provenance.write(tmp_path, {}, {"run": 0}, {})
        provenance.add_time(tmp_path, "answer", 1.25, {})
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert len(record["starts"]) == 2 and record["wall_seconds"]["answer"] == pytest.approx(2.4, abs=0.11)
    assert record["time_budget"] == {"answer": {"seconds": 2.5}}
    for _ in range(2):
        provenance.add_time(tmp_path, "probe", 1.0, {"waiting": 0.25, "questions": 4})
    assert provenance.read(tmp_path)["time_budget"]["probe"] == {"seconds": 2.0, "waiting": 0.5, "questions": 8}
    assert record["devices"]["cores"] >= 1 and record["versions"]["python"]


def test_a_broken_record_is_begun_again(tmp_path):
    (tmp_path / "provenance.json").write_text("{")
    assert provenance.read(tmp_path) == {}
    provenance.write(tmp_path, {}, {"run": 0}, {"note": 1})
    assert provenance.notes(tmp_path) == {"note": 1}
