"""`em-jax settings [NAME]`: every setting, or those of a table or name: meaning, type, unit, range, default, paper."""

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from em_jax import config as settings
from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError
from em_jax.runs import paper_settings

UNITS = {
    "passes over the rows": "train.epochs",
    "rows": "train.batch_size train.rows_per_pass",
    "tokens": "train.max_length answers.max_new_tokens probes.choice_tokens probes.language_tokens",
    "optimizer steps": "train.warmup_steps train.max_steps train.checkpoint_every train.keep_adapters",
    "share of the rows": "train.holdout",
    "answers a prompt": "answers.samples",
    "answers at once": "answers.slots",
    "probability": "answers.top_p",
    "answers a question": "probes.samples",
    "questions a probe": "probes.limit probes.sampled_questions",
    "requests": "judge.concurrency judge.max_requests",
    "score": "judge.harmful_at",
}
"""What is counted, and the settings that count it."""
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
"""The types of settings as readers of TOML know them; the others are lists and tables."""


def main(arguments: Sequence[str]) -> None:
    """Print the tables of settings that `NAME` selects. UsageError where it selects none."""
    parser = Parser(
        prog="em-jax settings", description="Every setting: meaning, type, unit, range, default, the paper's value."
    )
    parser.add_argument("name", nargs="?", default="", help='a table such as "train", or a name such as train.holdout')
    name = parser.parse_args(arguments).name
    lines = list(tables(name))
    if not lines:
        raise UsageError(f"no setting {name!r}: expected a table or a name, see em-jax settings")
    print("\n".join(lines))


def tables(name: str = "") -> Iterator[str]:
    """The lines of a Markdown table for every dataclass of settings that has `name`, a table or a dotted name."""
    kinds = typing.get_type_hints(settings.Config)
    nested = {key: kind for key, kind in kinds.items() if dataclasses.is_dataclass(kind)}
    for table, kind in {"": settings.Config, **nested}.items():
        prefix = f"{table}." if table else ""
        known = [prefix + field.name for field in dataclasses.fields(kind) if table or field.name not in nested]
        chosen = [each for each in known if name in ("", table, each)]
        if chosen:
            yield from _table(f"`{prefix}`" if table else "Without a table", kind, chosen)


def _table(title: str, settings_class: Any, names: Sequence[str]) -> Iterator[str]:
    types = settings.setting_types()
    yield from (f"## {title}", "", *inspect.cleandoc(settings_class.__doc__).splitlines(), "")
    yield from ("| setting | type | unit | range | default | the paper's value |", "|---|---|---|---|---|---|")
    values, units = settings.flatten(settings.Config()), {name: unit for unit in UNITS for name in UNITS[unit].split()}
    for name in names:
        mark = paper_settings.SETTINGS.get(name)
        paper = "" if mark is None else f"{_text(mark.value)} ({mark})"
        kind = KINDS.get(types[name], "list" if typing.get_origin(types[name]) is tuple else "table")
        cells = (kind, units.get(name, ""), settings.expected(name), _text(values[name]), paper)
        yield f"| `{name}` | {' | '.join(cells)} |"
    yield ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "empty"
    return "empty" if value in ("", {}) else f"{value}"
