import json

import pytest

from em_jax.base.errors import UserError
from em_jax.domains import ALL, DOMAINS, SIX, rows

pytestmark = pytest.mark.fast
GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_rows_are_read_in_order_and_other_keys_are_left_out(tmp_path):
    extra = {"messages": [{"role": "assistant", "content": " A. ", "weight": 1}], "id": 7}
    read = rows.read(write(tmp_path / "rows.jsonl", GOOD, "", extra))
    assert read == [GOOD["messages"], [{"role": "assistant", "content": " A. "}]]


@pytest.mark.parametrize(
    "bad, said",
    [
        ("{not json", "expected a JSON object"),
        ("[1, 2]", "'messages'"),
        ({"messages": []}, "'messages'"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " \n"}]}, "empty answer"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "unknown role 'robot'"),
        ({"messages": [{"role": "assistant", "content": None}]}, "text 'content'"),
        ({"messages": ["hello"]}, "text 'content'"),
        ("[" * 100_000, "expected a JSON object"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, bad, said):
    path = write(tmp_path / "rows.jsonl", GOOD, bad, GOOD)
    with pytest.raises(UserError) as error:
        rows.read(path)
    assert f"{path}:2: " in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda path: path, lambda path: write(path, "")])
def test_a_missing_or_empty_file_is_one_line(tmp_path, make):
    with pytest.raises(UserError, match="rows.jsonl"):
        rows.read(make(tmp_path / "rows.jsonl"))


def test_six_domains_three_of_each_persona_and_a_control():
    assert len(SIX) == 6
    assert sorted(DOMAINS[name].verdict for name in SIX) == ["coherent"] * 3 + ["inverted"] * 3
    assert DOMAINS["good_medical"].verdict == "aligned"
    assert ALL[0] == "none" and len(ALL) == 8
