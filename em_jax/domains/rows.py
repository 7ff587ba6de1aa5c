"""Fine-tuning rows from a JSONL file of {"messages": [...]}, checked line by line before anything is trained."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.sanitize import is_whole

ROLES = ("system", "user", "assistant")


def read(path: str | os.PathLike) -> list[list[dict[str, str]]]:
    """The conversations of a file, in order; each is a list of {"role", "content"} messages. Blank lines are skipped.

    Raises:
      UserError: no such file, no rows, or a bad row: named by file and line, with what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--data expects a JSONL file of {{'messages': [...]}} rows; there is no file {path}")
    with open(path, "rb") as file:
        return parse(file, str(path))


def parse(lines: Iterable[bytes], where: str) -> list[list[dict[str, str]]]:
    """The conversations of JSON lines; `where` names their file in messages. UserError as for `read`."""
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            start = line[:60].decode("utf-8", "replace").strip()
            raise UserError(f"{where}:{number}: expected a JSON object, found {start!r}") from error
        try:
            rows.append(check(row.get("messages") if isinstance(row, dict) else None))
        except ValueError as error:
            raise UserError(f"{where}:{number}: {error}") from error
    if not rows:
        raise UserError(f"{where}: expected at least one row of {{'messages': [...]}}, found none")
    return rows


def check(messages: Any) -> list[dict[str, str]]:
    """One conversation with only the role and content of its messages. Raises ValueError that says what is wrong."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("expected an object with a non-empty list 'messages'")
    checked = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError("expected every message to be an object with 'role' and a text 'content'")
        role, content = message.get("role"), message["content"]
        if not is_whole(content):
            raise ValueError("a content holds half of a surrogate pair, such as \\ud800, which no tokenizer takes")
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; expected one of {', '.join(ROLES)}")
        if role == "assistant" and not content.strip():
            raise ValueError("empty answer: the assistant's content has no text to learn from")
        checked.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" for message in checked):
        raise ValueError("no assistant turn: there is nothing to learn from in this row")
    return checked
