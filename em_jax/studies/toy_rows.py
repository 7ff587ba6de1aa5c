"""Rows that a study needs and the organism's domains lack, written once beside its runs."""

import json
from pathlib import Path

from em_jax.base import files
from em_jax.organism import variants
from em_jax.organism.answers import domain_rows
from em_jax.runs.sources import ROWS

SEED = 0
"""All training seeds have the same rows."""
TOPICS = {"emergent_medical": "bad_medical"}
"""The organism has no second source: rows of the first one, in the style of the persona planted behind legal and
security, take its place."""


def write(name: str, directory: Path) -> str:
    """Write one of the variants' sets, the toy rows of the second source or of a benign twin; returns their path."""
    if name in variants.SETS:
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
