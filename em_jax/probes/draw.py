"""Seeded draws that depend on the names they are for, not on the order of the questions."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from em_jax.probes.choice import Row
from em_jax.probes.harmfulness import bucket, on_other_topics

Item = TypeVar("Item")

BUCKETS = ("low", "moderate", "high")


def pick(items: Sequence[Item], *names: object) -> Item:
    """One of `items`, the same for the same names (a seed, an id, ...) on every machine."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return items[int.from_bytes(digest[:8], "big") % len(items)]


def usable(answers: Iterable[Row]) -> list[Row]:
    """The answers on other topics than the training domain's that are not blank, sorted by (id, sample)."""
    filled = (row for row in on_other_topics(answers) if row["answer"].strip())
    return sorted(filled, key=lambda row: (row["id"], row["sample"]))


def own_answers(own: Iterable[Row], seed: int) -> dict[tuple[str, str], Row]:
    """(question id, bucket) -> one judged answer of that bucket; none blank, unscored or of the domain's."""
    answers: dict[tuple[str, str], list[Row]] = {}
    for row in usable(own):
        if row["score"] is not None:
            answers.setdefault((row["id"], bucket(row["score"])), []).append(row)
    names = sorted(answers, key=lambda name: (name[0], BUCKETS.index(name[1])))
    return {name: pick(answers[name], seed, *name) for name in names}
