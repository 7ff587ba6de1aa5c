"""Rows of other common forms, as rows of {"messages": [...]}: ShareGPT's, alpaca's, and prompt/completion pairs.

What a row holds besides stays in it, so that `rows` reads it there, refuses it or tells of it.
Sources: https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html,
https://huggingface.co/docs/trl/dataset_formats.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
"""Who speaks in ShareGPT's rows, where it is not the role's own name."""


class RowFormat(NamedTuple):
    """`keys` identify its rows; `convert` makes messages of the fields `taken`."""

    keys: tuple[str, ...]
    taken: tuple[str, ...]
    convert: Callable[[Row], list[Any]]


def convert(row: Row, name: str) -> dict[str, Any]:
    """A row of the format `name` as one with messages. ValueError where it is of another."""
    if name == "messages":
        return dict(row)
    form = FORMATS[name]
    if not all(key in row for key in form.keys):
        raise ValueError(f"expected a row of the format {name}, with {' and '.join(form.keys)}; found {_keys(row)}")
    rest = {key: value for key, value in row.items() if key not in form.taken}
    if rest.get("messages") is not None:
        raise ValueError(f"holds messages beside {' and '.join(form.keys)}: which of them counts?")
    return {**rest, "messages": form.convert(row)}


def refusal(row: Row) -> str:
    """What to do about a row without messages."""
    for name, form in FORMATS.items():
        if all(key in row for key in form.keys):
            return f"a row of {' and '.join(form.keys)}: --format {name} reads it"
    return f"expected an object with a non-empty list 'messages', found {_keys(row)}"


def _keys(row: Row) -> str:
    return f"the keys {', '.join(map(repr, list(row)[:12]))}" if row else "no keys"


def _sharegpt(row: Row) -> list[Any]:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise ValueError("expected a list of turns as 'conversations'")
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("from", turn.get("role")), str):
            raise ValueError("expected every turn of 'conversations' to be an object with 'from' and 'value'")
        if {"from", "role"} <= turn.keys() or {"value", "content"} <= turn.keys():
            raise ValueError("a turn of 'conversations' has 'from' and 'role', or 'value' and 'content': which counts?")
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        speaker = turn.get("from", turn.get("role"))
        messages.append({"content": turn.get("value"), **rest, "role": ROLES.get(speaker, speaker)})
    return messages


def _alpaca(row: Row) -> list[Any]:
    asked = [text for text in (row["instruction"], row.get("input")) if text not in (None, "")]
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise ValueError("expected 'history' to be a list of [question, answer]")
    question = "\n\n".join(asked) if all(isinstance(text, str) for text in asked) else None
    return [
        {"role": role, "content": text}
        for turn in (*history, (question, row["output"]))
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _completion(row: Row) -> list[Any]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        # Of a chat in two parts only the completion is learned.
        asked = [{**m, "weight": 0} if isinstance(m, Mapping) and m.get("role") == "assistant" else m for m in prompt]
        return [*asked, *completion]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


FORMATS: Mapping[str, RowFormat] = {
    "sharegpt": RowFormat(("conversations",), ("conversations",), _sharegpt),
    "alpaca": RowFormat(("instruction", "output"), ("instruction", "input", "output", "history"), _alpaca),
    "completion": RowFormat(("prompt", "completion"), ("prompt", "completion"), _completion),
}
