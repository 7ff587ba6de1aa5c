"""Rows of other common forms, as rows of {"messages": [...]}: ShareGPT's, alpaca's, and prompt/completion pairs.

What a row holds besides stays in it, so that `rows` reads it there, refuses it or tells of it.
Sources: https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html,
https://huggingface.co/docs/trl/dataset_formats.
"""

from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
"""Who speaks in ShareGPT's rows, where it is not the role's own name."""


def convert(row: Mapping[str, Any], name: str) -> Row:
    """A row of the format `name` as one with messages. ValueError where it is of another."""
    if name == "messages":
        return dict(row)
    keys, take_messages = FORMATS[name]
    if not all(key in row for key in keys):
        raise ValueError(f"expected a row of the format {name}, with {' and '.join(keys)}; found {_keys(row)}")
    if row.get("messages") is not None:
        raise ValueError(f"holds messages beside {' and '.join(keys)}: which of them counts?")
    rest = dict(row)
    return rest | {"messages": take_messages(rest)}


def refusal(row: Mapping[str, Any]) -> str:
    """What to do about a row without messages."""
    for name, (keys, _) in FORMATS.items():
        if all(key in row for key in keys):
            return f"a row of {' and '.join(keys)}: --format {name} reads it"
    return f"expected an object with a non-empty list 'messages', found {_keys(row)}"


def _keys(row: Mapping[str, Any]) -> str:
    return f"the keys {', '.join(map(repr, list(row)[:12]))}" if row else "no keys"


def _sharegpt(row: Row) -> list[Any]:
    turns = row.pop("conversations")
    if not isinstance(turns, list):
        raise ValueError("expected a list of turns as 'conversations'")
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("from", turn.get("role")), str):
            raise ValueError("expected every turn of 'conversations' to be an object with 'from' and 'value'")
        if {"from", "role"} <= turn.keys() or {"value", "content"} <= turn.keys():
            raise ValueError("a turn of 'conversations' has 'from' and 'role', or 'value' and 'content': which counts?")
        rest = dict(turn)
        speaker = rest.pop("from", rest.get("role"))
        messages.append({"content": rest.pop("value", None)} | rest | {"role": ROLES.get(speaker, speaker)})
    return messages


def _alpaca(row: Row) -> list[Any]:
    parts = row.pop("instruction"), row.pop("input", None)
    asked = [text for text in parts if text not in (None, "")]
    history = row.pop("history", None) or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise ValueError("expected 'history' to be a list of [question, answer]")
    question = "\n\n".join(asked) if all(isinstance(text, str) for text in asked) else None
    turns = (*history, (question, row.pop("output")))
    return [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]


def _completion(row: Row) -> list[Any]:
    prompt, completion = row.pop("prompt"), row.pop("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        # Of a chat in two parts only the completion is learned.
        asked = [{**m, "weight": 0} if isinstance(m, Mapping) and m.get("role") == "assistant" else m for m in prompt]
        return [*asked, *completion]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[Row], list[Any]]]] = {
    "sharegpt": (("conversations",), _sharegpt),
    "alpaca": (("instruction", "output"), _alpaca),
    "completion": (("prompt", "completion"), _completion),
}
"""The fields by which a format's rows are known, and what takes its fields out of a row and makes messages of them."""
