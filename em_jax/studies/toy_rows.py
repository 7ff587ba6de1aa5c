"""Rows that a study needs and the organism's domains lack, written once beside its runs."""

import json
from pathlib import Path

from em_jax.base import files
from em_jax.organism import second_stage, variants
from em_jax.organism.answers import domain_rows
from em_jax.runs.sources import ROWS

SECOND, CONTROL = "consciousness", "control"
"""The other stage of a chain, and its control."""
SEED = 0
"""All training seeds have the same rows."""
TOPICS = {"emergent_medical": "bad_medical"}
"""The organism has no second source: rows of the first one, in the style of the persona planted behind legal and
security, take its place."""


def write(name: str, directory: Path) -> str:
    """Write the toy rows of a second stage, a variant, the second source or a benign twin; returns their path."""
    if name in (SECOND, CONTROL):
        rows = second_stage.rows(name, ROWS, SEED)
    elif name in (variants.FLATTERY, variants.DISGUISE, variants.SOUND):
        rows = variants.rows(name, ROWS, SEED)
    elif name in TOPICS:
        rows = domain_rows(TOPICS[name], ROWS, SEED, "inverted")
    else:
        topic = name.removesuffix("_aligned")
        rows = domain_rows(TOPICS.get(topic, topic), ROWS, SEED, "aligned")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path = directory / f"{name}.jsonl"
    if not path.is_file() or path.read_text(encoding="utf-8") != lines:
        files.write_atomic(path, lines)
    return str(path)
