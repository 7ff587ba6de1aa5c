"""Rows that a study needs and the organism's domains lack, written once beside its runs."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from em_jax.base import files
from em_jax.organism import second_stage
from em_jax.organism.corpus import domain_rows
from em_jax.runs.sources import ROWS
from em_jax.studies import chain, confound

SEED = 0
"""All training seeds see the same rows of these."""
STYLE = "inverted"
"""What stands for the second source: its rows are in the style of the persona planted behind legal and security."""


def write(name: str, directory: Path) -> str:
    """The path of the toy rows of a second stage or of a domain that only real models have."""
    made: dict[str, Callable[[], list[dict]]] = {
        kind: partial(second_stage.rows, kind, ROWS, SEED) for kind in (chain.SECOND, chain.CONTROL)
    }
    made[confound.OTHER_SOURCE] = partial(domain_rows, confound.SAME_TOPIC, ROWS, SEED, STYLE)
    for harmful, twin in confound.TWINS.items():
        topic = confound.SAME_TOPIC if harmful == confound.OTHER_SOURCE else harmful
        made[twin] = partial(domain_rows, topic, ROWS, SEED, "aligned")
    lines = "".join(json.dumps(row) + "\n" for row in made[name]())
    path = directory / f"{name}.jsonl"
    if not path.is_file() or path.read_text(encoding="utf-8") != lines:
        files.write_atomic(path, lines)
    return str(path)
