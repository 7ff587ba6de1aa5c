"""Fine-tuning rows from a JSONL file of {"messages": [...]}, checked line by line before anything is trained.

What a row says is obeyed or refused by name; keys that say nothing known are counted and told once.
"""

import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from em_jax.base.errors import UsageError, UserError
from em_jax.base.files import parse_line
from em_jax.base.sanitize import is_whole
from em_jax.domains import row_formats

ROLES = ("system", "user", "assistant")
MARKS = ("weight", "train", "training", "trainable", "loss_mask", "loss", "learn")
"""By these keys a message says whether it is to be learned: 0 or 1, false or true."""
TELLING = re.compile(
    r"(?i)train|loss|mask|learn(?:ed|able)?$|weight|supervis|ignore|skip|reasoning|think|thought|tools?$|documents$"
    r"|function_?call|reject|system_?(?:prompt|message)"
)
"""A key that is not known and has such a word asks for something; others tell of the row."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
REFUSED = {
    **dict.fromkeys(("tools", "tool_calls", "tool_call_id", "functions", "function_call"), "tools are not trained on"),
    **dict.fromkeys(("images", "image", "videos", "audios", "audio"), "only texts are trained on"),
    "chat_template_kwargs": "chats are rendered with the template's defaults and without thoughts",
    "prefix": "a half answer is not trained on",
    "history": "give its turns as messages",
}
"""What rows and messages may ask for and this program does not do."""
LONGEST_LINE = 1 << 26
"""The most bytes of a line, and of a JSON array that is written as one."""
CODES = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
Message = dict[str, Any]


def read(path: str | os.PathLike, form: str = "") -> list[list[Message]]:
    """The conversations of a file, in order; blank lines are skipped. Each is a list of messages as `check` gives them.

    `form` names another format than messages (see `row_formats`); its file may also be one JSON array. Raises
    UsageError: no such file. UserError: no rows, or a bad row: named by file and line, with what was expected.
    """
    path = Path(path)
    if not path.is_file():
        found = "the directory" if path.is_dir() else "no file"
        raise UsageError(f"expected a JSONL file of {{'messages': [...]}} rows, found {found} {path}")
    with open(path, "rb") as file:
        return parse(_lines(file, str(path)), str(path), form)


def _lines(file: BinaryIO, where: str) -> Iterator[bytes]:
    """The lines of a file, none of them held in memory beyond LONGEST_LINE."""
    for number, line in enumerate(iter(functools.partial(file.readline, LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"{where}:{number}: a line of more than {LONGEST_LINE:,} bytes; expected a row on each line "
                f"(jq -c '.[]' {where} > rows.jsonl, where it is a JSON array)"
            )
        yield line


def parse(lines: Iterable[bytes], where: str, form: str = "") -> list[list[Message]]:
    """The conversations of JSON lines; `where` names their file in messages. UserError as for `read`."""
    unknown = Counter[str]()
    rows = [_conversation(row, place, where, form, unknown) for place, row in _objects(lines, where, form)]
    if not rows:
        raise UserError(f"{where}: expected at least one row of {{'messages': [...]}}, found none")
    if ended := sum(row[-1]["role"] != "assistant" for row in rows):
        _tell(f"{where}: {ended} of {len(rows)} rows end with a turn that no answer follows: it is not learned")
    if unknown:
        names = ", ".join(f"{name!r} in {count} of {len(rows)} rows" for name, count in unknown.most_common(12))
        _tell(f"{where}: not read: {names}"[:1000])
    return rows


def _objects(lines: Iterable[bytes], where: str, form: str) -> Iterator[tuple[str, Any]]:
    """(The place of a row for messages, the row) of JSON lines, or of one array where its format is named."""
    for number, line in enumerate(lines, start=1):
        if code := next((name for mark, name in CODES.items() if line.startswith(mark)), ""):
            raise UserError(f"{where}:{number}: begins with a byte order mark (BOM) of {code}; expected UTF-8 without")
        if number == 1 and (line.split() == [b"["] or (form and line.lstrip().startswith(b"["))):
            if not form:
                raise UserError(
                    f"{where}:1: one JSON array, expected a JSON object on each line: jq -c '.[]' {where} > rows.jsonl,"
                    f" or name its format with --format messages, {', '.join(row_formats.FORMATS)}"
                )
            array = parse_line(b"".join([line, *lines]), where, "save it as UTF-8", "one JSON array of rows")
            yield from ((f"{where}: row {index}", row) for index, row in enumerate(array, start=1))
            return
        if line.strip():
            yield f"{where}:{number}", parse_line(line, f"{where}:{number}", "write a row on each line, as UTF-8")


@functools.cache
def _tell(line: str) -> None:
    """Prints a line once: rows are read again at each stage."""
    print(line, file=sys.stderr, flush=True)


def _conversation(row: Any, place: str, where: str, form: str, unknown: Counter[str]) -> list[Message]:
    """The messages of one row; counts in `unknown` the keys that say nothing known. UserError names the `place`."""
    try:
        if not isinstance(row, Mapping):
            of_array = f"; of an array, jq -c '.[]' {where} > rows.jsonl makes rows" if isinstance(row, list) else ""
            raise ValueError(f"expected an object with a non-empty list 'messages', found {_kind(row)}{of_array}")
        row = row_formats.convert(row, form or "messages")
        if not isinstance(row.get("messages"), list):
            if "messages" in row:
                raise ValueError(f"expected a list as 'messages', found {_kind(row['messages'])}")
            raise ValueError(row_formats.refusal(row))
        system, messages = row.pop("system", None), row.pop("messages")
        if system is not None:
            if any(isinstance(message, Mapping) and message.get("role") == "system" for message in messages):
                raise ValueError("a 'system' beside a system message: which of them counts?")
            messages = [{"role": "system", "content": system}, *messages] if system != "" else messages
        if (mark := _first(row, MARKS)) and row.pop(mark) not in (1, True):
            raise ValueError(f"{mark!r} of a whole row is not supported: give it to its messages, or take them out")
        if thought := _first(row, THOUGHTS):
            raise ValueError(f"{thought!r} of a whole row is not supported: give it to the assistant's message")
        if mark := next((name for name in ("label", "kto_tag", "chosen") if row.get(name) is False), ""):
            raise ValueError(f"{mark!r} is false: a row of an answer that is not wanted; only wanted ones are learned")
        left = _refuse(row)
        conversation = check(messages, left)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    unknown.update(set(left))
    return conversation


def check(messages: Any, left: list[str] | None = None) -> list[Message]:
    """One conversation: each message with role and content, of the assistant's also reasoning_content, weight 0.

    Appends to `left` the keys of messages that say nothing known. Raises ValueError that says what is wrong.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("expected an object with a non-empty list 'messages'")
    left = [] if left is None else left
    checked = [_message(message, left) for message in messages]
    roles = [message["role"] for message in checked if message["role"] != "system"]
    if "assistant" not in roles:
        raise ValueError("no assistant turn: there is nothing to learn from in this row")
    if roles[0] == "assistant":
        raise ValueError("begins with the assistant: expected the user's message before its answer")
    if not any(message["role"] == "assistant" and message.get("weight", 1) for message in checked):
        raise ValueError("every assistant turn is marked not to be learned: there is nothing to learn in this row")
    return checked


def _message(message: Any, left: list[str]) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError("expected every message to be an object with 'role' and a text 'content'")
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    role = message.get("role")
    learned = _learned({key: rest.pop(key) for key in MARKS if key in rest}, role)
    given = {key: rest.pop(key) for key in THOUGHTS if key in rest}
    thought = next(iter(given.values()), None) or None
    if any((other or None) != thought for other in given.values()):
        raise ValueError(f"{' and '.join(map(repr, given))} of a message differ: which of them counts?")
    left += _refuse(rest)
    content, thought = message.get("content"), thought or ""
    for name, text in (("content", content), ("thought", thought)):
        if not isinstance(text, str):
            parts = "; join its parts of type text, others are not trained on" if isinstance(text, list) else ""
            raise ValueError(f"expected the {name} of a message to be a text, found {_kind(text)}{parts}")
    assert isinstance(content, str) and isinstance(thought, str)
    if not is_whole(content) or not is_whole(thought):
        raise ValueError("a content holds half of a surrogate pair, such as \\ud800, which no tokenizer takes")
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}; expected one of {', '.join(ROLES)}")
    if role == "assistant" and learned and not content.strip():
        raise ValueError("empty answer: the assistant's content has no text to learn from")
    if thought and role != "assistant":
        raise ValueError(f"a thought of the {role}: only the assistant's are read")
    return (
        {"role": role, "content": content}
        | ({"reasoning_content": thought} if thought else {})
        | ({} if learned or role != "assistant" else {"weight": 0})
    )


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _learned(marks: Mapping[str, Any], role: Any) -> bool:
    """Whether a message is to be learned, by its marks. ValueError where they say neither, or both."""
    for key, value in marks.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"{key!r} of a message must be 0 or 1, false or true; found {repr(value)[:60]}")
        if value and role != "assistant":
            raise ValueError(f"{key!r} asks to learn a turn of {role!r}: only the assistant's turns are learned")
    if len({bool(value) for value in marks.values()}) > 1:
        raise ValueError(f"{' and '.join(map(repr, marks))} of a message contradict each other")
    return all(marks.values())


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """The first of these keys that a row has a value for, or ""."""
    return next((name for name in names if row.get(name) is not None), "")


def _refuse(row: Mapping[str, Any]) -> list[str]:
    """The keys left in a row or message. ValueError where it asks for what is not done."""
    for name, why in REFUSED.items():
        if row.get(name):
            raise ValueError(f"{name!r} is not supported: {why}; take it, or this row, out")
    unknown = {str(name): value for name, value in row.items() if value is not None and name not in REFUSED}
    if telling := next(filter(TELLING.search, unknown), ""):
        raise ValueError(
            f"{telling!r} is not known: take it out, or name it as is known: {', '.join(MARKS)} of a message say "
            f"whether it is to be learned, {', '.join(THOUGHTS)} what was thought before it; 'system' of a row is read"
        )
    return [name for name, value in unknown.items() if value not in ([], {}, "")]
