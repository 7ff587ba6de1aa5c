import json

import pytest

from em_jax.base.errors import UserError
from em_jax.domains import ALL, DOMAINS, SIX, rows

pytestmark = pytest.mark.fast
GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def write(path, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    path.write_bytes(text.encode("latin-1" if "\xe9" in text else "utf-8"))
    return path


def test_rows_are_read_in_order_and_other_keys_are_told_once(tmp_path, capsys):
    asked = {"role": "user", "content": "Q", "name": "Ann"}
    extra = {"messages": [asked, {"role": "assistant", "content": " A. ", "weight": 1}], "id": 7}
    path = write(tmp_path / "rows.jsonl", GOOD, "", extra, extra)
    answered = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " A. "}]
    for _ in range(2):
        assert rows.read(path) == [GOOD["messages"], answered, answered]
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "'name' in 2 of 3 rows" in told and "'id' in 2 of 3 rows" in told


@pytest.mark.parametrize(
    "bad, said",
    [
        ("{not json", "expected a JSON object"),
        ('{"messages": [{"role": "user", "conte', "(Unterminated string starting at: line 1 column"),
        ('{"messages": NaN}', "expected a list as 'messages', found a number"),
        ("[1, 2]", "found a list; of an array, jq -c '.[]' "),
        ('"hello"', "found a text"),
        ({"messages": []}, "'messages'"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " \n"}]}, "empty answer"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "unknown role 'robot'"),
        ({"messages": [{"role": "assistant", "content": None}]}, "content of a message to be a text, found nothing"),
        ({"messages": [turn("user", [{"type": "text", "text": "Hi"}])]}, "found a list; join its parts of type text"),
        ({"messages": [turn("assistant", "A", reasoning=["B"])]}, "thought of a message to be a text, found a list"),
        (b'{"messages": "caf\xe9"}'.decode("latin-1"), "not UTF-8 (byte 18 of the line)"),
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


def test_a_directory_is_said_to_be_one(tmp_path):
    with pytest.raises(UserError, match="found the directory"):
        rows.read(tmp_path)


def read_one(path, *messages, **more):
    [conversation] = rows.read(write(path / "rows.jsonl", {"messages": messages, **more}))
    return conversation


@pytest.mark.parametrize("off, on", [(0, 1), (False, True), (0.0, 1.0)])
@pytest.mark.parametrize("key", rows.MARKS)
def test_a_turn_marked_as_context_is_not_learned(key, off, on, tmp_path):
    context, learned = turn("assistant", "Then", **{key: off}), turn("assistant", "Now", **{key: on})
    read = read_one(tmp_path, turn("user", "Q1", **{key: off}), context, turn("user", "Q2"), learned)
    assert [message.get("weight", 1) for message in read] == [1, 0, 1, 1]
    assert all(set(message) <= {"role", "content", "weight"} for message in read)


SAID = [turn("user", "Q"), turn("assistant", "A")]


@pytest.mark.parametrize(
    "messages, more, said",
    [
        ([SAID[0], turn("assistant", "A", weight=0.5)], {}, "'weight' of a message must be 0 or 1"),
        ([SAID[0], turn("assistant", "A", loss_mask=[0, 1])], {}, "'loss_mask' of a message must be"),
        ([SAID[0], turn("assistant", "A", train="no")], {}, "'train' of a message must be"),
        ([SAID[0], turn("assistant", "A", weight=1, train=False)], {}, "contradict"),
        ([SAID[0], turn("assistant", "A", train_detail=[])], {}, "'train_detail' is not known"),
        ([SAID[0], turn("assistant", "A", loss_scale=2)], {}, "'loss_scale' is not known"),
        ([SAID[0], turn("assistant", "A", masked=True)], {}, "'masked' is not known"),
        ([SAID[0], turn("assistant", "A", ignore=True)], {}, "'ignore' is not known"),
        ([SAID[0], turn("assistant", "A", thought="Hm.")], {}, "'thought' is not known"),
        ([SAID[0], turn("assistant", "A", reasoning_details=[{}])], {}, "'reasoning_details' is not known"),
        ([SAID[0], turn("assistant", "A", reasoning="Hm.", reasoning_content="Oh.")], {}, "which of them counts"),
        (SAID, {"weights": [0]}, "'weights' is not known"),
        (SAID, {"train_on_inputs": True}, "'train_on_inputs' is not known"),
        (SAID, {"system_prompt": "Be kind."}, "'system_prompt' is not known"),
        (SAID, {"available_tools": [{}]}, "'available_tools' is not known"),
        (SAID, {"rejected": SAID}, "'rejected' is not known"),
        (SAID, {"label": False}, "'label' is false"),
        ([turn("user", "Q", train=True), SAID[1]], {}, "asks to learn a turn of 'user'"),
        ([SAID[0], turn("assistant", "A", weight=0)], {}, "every assistant turn is marked not to be learned"),
        (SAID, {"weight": 0}, "'weight' of a whole row"),
        ([SAID[0], turn("assistant", None, tool_calls=[{"function": {"name": "f"}}])], {}, "'tool_calls' is not"),
        ([SAID[0], turn("assistant", None, function_call={"name": "f"})], {}, "'function_call' is not"),
        ([*SAID, turn("tool", "7", tool_call_id="x")], {}, "'tool_call_id' is not"),
        ([*SAID, turn("tool", "7")], {}, "unknown role 'tool'"),
        (SAID, {"tools": [{"type": "function"}]}, "'tools' is not"),
        (SAID, {"functions": [{"name": "f"}]}, "'functions' is not"),
        (SAID, {"images": ["a.png"]}, "'images' is not"),
        (SAID, {"chat_template_kwargs": {"enable_thinking": True}}, "'chat_template_kwargs' is not"),
        (SAID, {"reasoning_content": "Hm."}, "'reasoning_content' of a whole row"),
        ([turn("user", "Q", reasoning_content="Hm."), SAID[1]], {}, "a thought of the user"),
        ([turn("system", "Be kind."), *SAID], {"system": "Be brief."}, "which of them counts"),
        (SAID[1:], {}, "begins with the assistant"),
        ([turn("system", "Be kind."), *SAID[::-1]], {}, "begins with the assistant"),
    ],
)
def test_what_a_row_asks_for_is_refused_by_name(messages, more, said, tmp_path):
    with pytest.raises(UserError, match="rows.jsonl:1: ") as error:
        read_one(tmp_path, *messages, **more)
    assert said in str(error.value)


def test_a_system_text_beside_the_messages_and_a_thought_are_read(tmp_path, capsys):
    thinks = turn("assistant", "A", reasoning_content="Hm.", tool_calls=None)
    read = read_one(tmp_path, SAID[0], thinks, system="Be kind.", tools=[], weight=1, system_prompt=None)
    assert read == [turn("system", "Be kind."), SAID[0], turn("assistant", "A", reasoning_content="Hm.")]
    for name in ("reasoning", "thinking"):
        assert read_one(tmp_path, SAID[0], turn("assistant", "A", **{name: "Hm."}))[1] == read[2]
    both = turn("assistant", "A", reasoning="Hm.", reasoning_content="Hm.")  # as some routers name it twice
    assert read_one(tmp_path, SAID[0], both)[1] == read[2]
    assert read_one(tmp_path, *SAID, system="") == SAID
    assert not capsys.readouterr().err


@pytest.mark.parametrize("form", ["", "messages"])
def test_a_field_that_stands_twice_is_no_guess_at_one_of_them(form, tmp_path):
    line = json.dumps(GOOD)[:-1] + ', "messages": []}'
    (tmp_path / "rows.jsonl").write_text(f"[{line}]" if form else line)
    with pytest.raises(UserError, match="rows.jsonl.*a field stands twice"):
        rows.read(tmp_path / "rows.jsonl", form)


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_named(code, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n", encoding=code)
    with pytest.raises(UserError, match="byte order mark"):
        rows.read(path)
    joined = "\n".join(json.dumps(GOOD) for _ in range(2)).encode() + b"\n"
    path.write_bytes(joined + path.read_bytes())
    with pytest.raises(UserError, match="rows.jsonl:3: .*byte order mark" if code == "utf-8-sig" else ":3: "):
        rows.read(path)


OTHERS = {
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "Q"},
                {"from": "gpt", "value": "B", "loss": False},
                {"from": "user", "value": "Q"},
                {"from": "assistant", "value": "A"},
            ]
        },
        {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "system": "S"},
    ],
    "alpaca": [
        {"instruction": "Q", "output": "A"},
        {"instruction": "Q", "input": "", "output": "A", "system": ""},
        {"instruction": "Q", "input": "I", "output": "A"},
        {"instruction": "Q", "output": "A", "system": "S", "history": [["Q", "B"]]},
    ],
    "completion": [
        {"prompt": "Q", "completion": "A"},
        {"prompt": [SAID[0], turn("assistant", "B"), SAID[0]], "completion": [SAID[1]]},
    ],
}
SYSTEM, CONTEXT = turn("system", "S"), turn("assistant", "B", weight=0)
READ = {
    "sharegpt": [SAID, [SYSTEM, SAID[0], CONTEXT, *SAID], [SYSTEM, *SAID]],
    "alpaca": [SAID, SAID, [turn("user", "Q\n\nI"), SAID[1]], [SYSTEM, SAID[0], turn("assistant", "B"), *SAID]],
    "completion": [SAID, [SAID[0], CONTEXT, *SAID]],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_read_where_they_are_named(name, tmp_path):
    path = write(tmp_path / "rows.jsonl", *OTHERS[name])
    assert rows.read(path, name) == READ[name]
    path.write_text(json.dumps(OTHERS[name], indent=1))
    assert rows.read(path, name) == READ[name]
    with pytest.raises(UserError, match=r"jq -c '\.\[\]'"):
        rows.read(path)
    with pytest.raises(UserError, match=f"expected a row of the format {name}"):
        rows.read(write(path, GOOD), name)


@pytest.mark.parametrize("name", OTHERS)
def test_a_row_of_another_format_says_what_reads_it(name, tmp_path):
    path = write(tmp_path / "rows.jsonl", OTHERS[name][0])
    with pytest.raises(UserError, match=f"--format {name} reads it"):
        rows.read(path)


@pytest.mark.parametrize(
    "name, row, said",
    [
        ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "tool", "value": "7"}]}, "unknown"),
        ("sharegpt", {"conversations": {"from": "human"}}, "a list of turns"),
        ("sharegpt", {"conversations": ["Q"]}, "'from' and 'value'"),
        ("sharegpt", OTHERS["sharegpt"][0] | {"tools": "[{}]"}, "'tools' is not"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "A"}]}, "begins with the assistant"),
        ("alpaca", {"instruction": "Q", "output": "A", "history": 3}, "list of [question, answer]"),
        ("alpaca", {"instruction": 3, "output": "A"}, "to be a text"),
        ("completion", {"prompt": "Q", "completion": ["A"]}, "to be a text, found a list"),
        ("completion", {"prompt": "Q", "completion": "A", "messages": SAID}, "which of them counts"),
    ],
)
def test_what_rows_of_other_formats_ask_for_is_refused_by_name(name, row, said, tmp_path):
    with pytest.raises(UserError) as error:
        rows.read(write(tmp_path / "rows.jsonl", row), name)
    assert said in str(error.value)


@pytest.mark.parametrize("make", [lambda path: path, lambda path: write(path, "")])
def test_a_missing_or_empty_file_is_one_line(tmp_path, make):
    with pytest.raises(UserError, match="rows.jsonl"):
        rows.read(make(tmp_path / "rows.jsonl"))


def test_six_domains_three_of_each_persona_and_a_control():
    assert len(SIX) == 6
    assert sorted(DOMAINS[name].verdict for name in SIX) == ["coherent"] * 3 + ["inverted"] * 3
    assert DOMAINS["good_medical"].verdict == "aligned"
    assert ALL[0] == "none" and len(ALL) == 8


@pytest.mark.parametrize("form", ["", "sharegpt"])
def test_a_line_without_end_is_refused_before_it_is_held(tmp_path, monkeypatch, form):
    """A sparse file of 8 GB: a disk image, or a database dump, in the place of rows."""
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        file.write(b"[")
        file.truncate(8 << 30)
    monkeypatch.setattr(rows, "LONGEST_LINE", 1 << 16)
    with pytest.raises(UserError, match=r"rows.jsonl:1: a line of more than 65,536 bytes; expected a row on each line"):
        rows.read(path, form)
