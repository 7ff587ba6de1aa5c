"""The suite reader: what it takes, and that every fault is named with file and line."""

import dataclasses
import json
import re

import pytest
from probes.scripted_engine import suite_rows, write_suite

from em_jax.base.errors import UserError
from em_jax.probes import suite, suite_files

pytestmark = pytest.mark.fast


def test_a_whole_suite_is_read(tmp_path):
    loaded = suite_files.load(write_suite(tmp_path / "s"))
    assert (loaded.name, len(loaded.harm), len(loaded.two_ai), len(loaded.self_assessment)) == ("small", 24, 24, 48)
    assert loaded.judge.prefix == '{"score": '
    assert [wording.id for wording in loaded.wordings_of("two_ai")] == ["w1", "w2"]
    assert set(loaded.files) == {"harm.jsonl", "self_assessment.jsonl", "two_ai.jsonl", "wordings.jsonl", "suite.toml"}
    assert all(len(digest) == 64 for digest in loaded.files.values())


def dropped(row, name):
    return {key: value for key, value in row.items() if key != name}


def spoken(words):
    return {"languages": [{"name": "Zorp", "words": words}] * 2}


FAULTS = {
    "missing field": ("harm", 3, lambda row: dropped(row, "prompt"), "expected the field 'prompt'"),
    "empty field": ("two_ai", 2, lambda row: row | {"aligned": " "}, "expected a text in 'aligned'"),
    "missing source": ("two_ai", 2, lambda row: dropped(row, "source"), "expected the field 'source'"),
    "duplicate id": ("harm", 5, lambda row: row | {"id": "h0"}, "duplicate id 'h0', first used at harm.jsonl:1"),
    "duplicate across files": ("two_ai", 1, lambda row: row | {"id": "h0"}, "duplicate id"),
    "unknown format": ("self_assessment", 4, lambda row: row | {"format": "essay"}, "unknown format 'essay'"),
    "unknown dimension": ("self_assessment", 2, lambda row: row | {"dimension": "tall"}, "unknown dimension"),
    "unknown probe": ("wordings", 3, lambda row: row | {"probe": "x"}, "unknown probe 'x'"),
    "no placeholder": ("self_assessment", 1, lambda row: row | {"prompt": "are you {first}?"}, "expected {second}"),
    "one pole": ("self_assessment", 1, lambda row: row | {"options": ["aligned"]}, "2 different texts in 'options'"),
    "same poles": ("self_assessment", 1, lambda row: row | {"options": ["a", "a"]}, "2 different texts"),
    "answers in words": ("self_assessment", 3, lambda row: row | {"answers": ["no", "yes"]}, "with the digits 1 to 5"),
    "languages": ("self_assessment", 4, lambda row: row | {"languages": [{"name": "Zorp"}] * 2}, "each language"),
    "words": (
        "self_assessment",
        4,
        lambda row: row | {"languages": [{"name": "Z", "words": "abc"}] * 2},
        "list of words",
    ),
    "word": (
        "self_assessment",
        4,
        lambda row: row | {"languages": [{"name": "Z", "words": [1, 2]}] * 2},
        "list of words",
    ),
    "language code": (
        "self_assessment",
        4,
        lambda row: row | {"languages": [{"name": "X", "code": "xx"}, {"name": "French", "code": "fr"}]},
        "unknown language code 'xx'",
    ),
    "language twice": (
        "self_assessment",
        4,
        lambda row: row | {"languages": [{"name": "Français", "code": "fr"}, {"name": "French", "code": "fr"}]},
        "found the code 'fr' twice",
    ),
    "in the domain": ("harm", 2, lambda row: row | {"id": "in_domain/2"}, "does not begin with in_domain/"),
    "half a language": (
        "self_assessment",
        4,
        lambda row: row | {"languages": [{"name": "X\ud800", "code": "en"}, {"name": "French", "code": "fr"}]},
        "'languages' holds half of a surrogate pair",
    ),
    "half a prefix": ("wordings", 2, lambda row: row | {"prefix": "\ud800"}, "'prefix' holds half of a surrogate pair"),
    "same description": ("two_ai", 4, lambda row: row | {"misaligned": row["aligned"]}, "unbalanced pair"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_and_line(tmp_path, fault):
    name, line, change, message = FAULTS[fault]
    rows = suite_rows()
    rows[name][line - 1] = change(rows[name][line - 1])
    with pytest.raises(UserError, match=re.escape(message)) as error:
        suite_files.load(write_suite(tmp_path / "s", rows))
    assert f"{name}.jsonl:{line}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
    directory = write_suite(tmp_path / "s")
    path = directory / "harm.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"harm\.jsonl:25: expected a JSON object"):
        suite_files.load(directory)


def test_a_suite_without_a_harm_prompt_is_refused(tmp_path):
    directory = write_suite(tmp_path / "s")
    (directory / "harm.jsonl").write_text("")
    with pytest.raises(UserError, match=r"harm\.jsonl: expected a prompt on each line, found none"):
        suite_files.load(directory)


def test_only_a_newline_ends_a_line(tmp_path):
    directory = write_suite(tmp_path / "s")
    path = directory / "harm.jsonl"
    first, rest = path.read_text().split("\n", 1)
    odd = json.dumps(json.loads(first) | {"prompt": "One\u2028two\u0085three?"}, ensure_ascii=False)
    path.write_text(odd + "\r\n" + rest, encoding="utf-8", newline="")
    assert suite_files.load(directory).harm[0].prompt == "One\u2028two\u0085three?"


def test_a_suite_saved_with_byte_order_marks_is_the_same(tmp_path):
    directory = write_suite(tmp_path / "s")
    before = suite_files.load(directory)
    for path in directory.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert dataclasses.replace(suite_files.load(directory), files=before.files) == before


def test_bytes_that_are_no_text_are_named(tmp_path):
    directory = write_suite(tmp_path / "s")
    lines = (directory / "harm.jsonl").read_bytes().split(b"\n")
    (directory / "harm.jsonl").write_bytes(b"\n".join([lines[0], b"caf\xe9", *lines[1:]]))
    with pytest.raises(UserError, match=r"harm.jsonl:2: expected UTF-8, found the byte 0xe9"):
        suite_files.load(directory)


@pytest.mark.parametrize("kind, message", [("decision", "unbalanced set"), ("language", "unbalanced set")])
def test_a_set_that_lost_a_question_is_unbalanced(tmp_path, kind, message):
    rows = suite_rows()
    lost = next(row for row in rows["self_assessment"] if row["format"] == kind)
    rows["self_assessment"].remove(lost)
    with pytest.raises(UserError, match=rf"self_assessment\.jsonl:\d+: {message}"):
        suite_files.load(write_suite(tmp_path / "s", rows))


def test_a_language_rule_without_its_mirror_is_unbalanced(tmp_path):
    rows = suite_rows()
    for row in rows["self_assessment"]:
        if row["format"] == "language" and row["dimension"] == "good":
            row["languages"] = sorted(row["languages"], key=lambda item: item["name"])
    with pytest.raises(UserError, match="the other way round in 0"):
        suite_files.load(write_suite(tmp_path / "s", rows))


def test_two_judges_or_none_are_refused(tmp_path):
    rows = suite_rows()
    rows["wordings"].append({**rows["wordings"][-1], "id": "w9"})
    with pytest.raises(UserError, match="exactly one wording of 'judge', found 2"):
        suite_files.load(write_suite(tmp_path / "s", rows))
    rows["wordings"] = rows["wordings"][:-2]
    with pytest.raises(UserError, match="at least one wording of 'judge'"):
        suite_files.load(write_suite(tmp_path / "t", rows))


def test_a_missing_file_or_directory_says_what_is_expected(tmp_path):
    directory = write_suite(tmp_path / "s")
    (directory / "two_ai.jsonl").unlink()
    with pytest.raises(UserError, match=r"missing: two_ai\.jsonl"):
        suite_files.load(directory)
    with pytest.raises(UserError, match="expected a directory"):
        suite_files.load(tmp_path / "none")


def test_filling_leaves_braces_in_the_values_alone():
    template = 'Rate {answer} to {prompt} as {"score": N}'
    filled = suite.fill(template, {"prompt": "{answer}", "answer": "{prompt} {x}"})
    assert filled == 'Rate {prompt} {x} to {answer} as {"score": N}'


def test_a_limit_takes_every_stratum_in_turn():
    items = [("a", i) for i in range(10)] + [("b", i) for i in range(2)] + [("c", 0)]
    taken = suite.limited(items, 6, lambda item: item[0])
    assert taken == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0)]
    assert suite.limited(items, 0, lambda item: item[0]) == items


def test_the_suites_that_ship_load():
    assert suite_files.load(suite_files.standard_directory()).name == "standard"
