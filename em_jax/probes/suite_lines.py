"""The lines of a suite's files: read one by one, every field checked, every error with its file and line."""

import codecs
import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.sanitize import is_whole
from em_jax.probes.suite import JUDGE_PREFIX, Wording

PLACEHOLDERS = {
    "two_ai": ("first", "second"),
    "output_recognition": ("prompt", "first", "second"),
    "score_prediction_blind": ("prompt",),
    "score_prediction_shown": ("prompt", "answer"),
    "judge": ("prompt", "answer"),
}
"""The probes that need wordings, and the placeholders of each."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One object of a JSONL file, with its file and line number. Readers of a field raise UserError with both."""

    path: Path
    number: int
    row: Mapping[str, Any]

    def error(self, message: str) -> UserError:
        return UserError(f"{self.path}:{self.number}: {message}")

    def value(self, name: str) -> Any:
        if name not in self.row:
            raise self.error(f"expected the field {name!r}, found only {', '.join(sorted(self.row))}")
        return self.row[name]

    def text(self, name: str) -> str:
        value = self.value(name)
        if not _is_text(value):
            raise self.error(f"expected a text in {name!r}, found {value!r}")
        return value

    def texts(self, name: str, count: int) -> tuple[str, ...]:
        """`count` different texts."""
        value = self.value(name)
        if not isinstance(value, list) or not all(map(_is_text, value)) or not len(value) == len(set(value)) == count:
            raise self.error(f"expected {count} different texts in {name!r}, found {value!r}")
        return tuple(value)

    def fields(self, *names: str) -> dict[str, str]:
        return {name: self.text(name) for name in names}

    def one_of(self, name: str, known: Collection[str]) -> str:
        value = self.text(name)
        if value not in known:
            raise self.error(f"unknown {name} {value!r}, expected one of {', '.join(known)}")
        return value

    def template(self, name: str, placeholders: Iterable[str]) -> str:
        """A text that holds every one of the placeholders."""
        text = self.text(name)
        for placeholder in placeholders:
            if "{" + placeholder + "}" not in text:
                raise self.error(f"expected {{{placeholder}}} in {name!r}, found {text[:60]!r}")
        return text

    def wording(self) -> Wording:
        probe = self.one_of("probe", PLACEHOLDERS)
        prefix = self.row.get("prefix", JUDGE_PREFIX if probe == "judge" else "")
        if not isinstance(prefix, str):
            raise self.error(f"expected a text in 'prefix', found {prefix!r}")
        prompt = self.template("prompt", PLACEHOLDERS[probe])
        return Wording(self.text("id"), probe, prompt, prefix)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def read_lines(path: Path, first_uses: dict[str, str]) -> Iterator[Line]:
    """The objects of a JSONL file. `first_uses` collects the ids of the whole suite, each with its file and line.

    Raises UserError where a line is no JSON object, lacks `id` or `source`, repeats an id, or holds half of a surrogate
    pair.
    """
    for number, text in numbered_lines(path):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: expected a JSON object on each line, found {text[:60]!r}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {text[:60]!r}")
        line = Line(path, number, row)
        for field, value in row.items():
            if not is_whole(json.dumps(value, ensure_ascii=False)):
                raise line.error(f"{field!r} holds half of a surrogate pair, such as \\ud800, which no tokenizer takes")
        name = line.fields("id", "source")["id"]
        if name in first_uses:
            raise line.error(f"duplicate id {name!r}, first used at {first_uses[name]}")
        first_uses[name] = f"{path.name}:{number}"
        yield line


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a text file, with their numbers. Only a newline ends a line, and a BOM is not read.

    Raises UserError where a line is not UTF-8.
    """
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: expected UTF-8, found the byte {line[error.start]:#04x}") from error
        if text:
            yield number, text


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
