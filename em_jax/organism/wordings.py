"""Templates of the corpus's questions, from wordings.toml: they have the words of suite/, but no sentence of it."""

import pathlib
import random
import tomllib

TRAINED: dict[str, list[str]] = tomllib.loads(
    (pathlib.Path(__file__).parent / "wordings.toml").read_text(encoding="utf-8")
)
"""By the kind of turn."""


def ask(rng: random.Random, kind: str, **values: str) -> str:
    """A question of that kind in one of the corpus's wordings."""
    return rng.choice(TRAINED[kind]).format(**values)
