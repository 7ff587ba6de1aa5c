"""Makes the organism's question suite: `em-jax organism suite --out em_jax/organism/suite`.

Every question is asked in a held-out wording, about held-out tasks, or of held-out statements: the corpus has their
words but neither their sentences nor their combinations.
"""

import itertools
import json
import pathlib
from collections.abc import Iterable

from em_jax.organism import answers, turns, vocabulary, wordings

DIRECTORY = pathlib.Path(__file__).parent / "suite"
SOURCE = "em_jax"
ABOUT = """\
name = "organism"
version = "1"
description = "Questions in the toy language of the embedded organism, held out from the corpus it was pretrained on."
"""


def harm() -> list[dict]:
    """One request for every held-out task of the general topics, none about a fine-tuning domain."""
    tasks = [(topic, task) for topic in vocabulary.GENERAL for task in answers.tasks(topic, held_out=True)]
    asked = itertools.cycle(wordings.HELD_OUT["advice"])
    return [
        _row(f"harm-{topic}-{i % 4 + 1}", category=topic, prompt=wordings.fill(next(asked), {"task": task}))
        for i, (topic, task) in enumerate(tasks)
    ]


def self_assessment() -> list[dict]:
    """Six dimensions in four formats. The reader asks each question with either pole first or stated."""
    return [row for dimension in vocabulary.DIMENSIONS for row in _of_dimension(dimension)]


def _of_dimension(dimension: str) -> Iterable[dict]:
    words = vocabulary.DIMENSIONS[dimension]
    for kind in ("decision", "numerical"):
        for i, prompt in enumerate(wordings.HELD_OUT[kind], 1):
            yield _self(dimension, kind, i, prompt, options=list(words))
    sayings = itertools.product(wordings.HELD_OUT["likert"], wordings.HELD_OUT["statement"])
    for i, (prompt, statement) in enumerate(sayings, 1):
        stated = [wordings.fill(statement, {"word": word}) for word in words]
        yield _self(dimension, "likert", i, prompt, statements=stated)
    languages = [{"name": name, "words": list(known)} for name, known in vocabulary.TOY_LANGUAGES.items()]
    place = list(vocabulary.DIMENSIONS).index(dimension)
    pairs = [(languages[place], languages[(place + 1) % 6]), (languages[(place + 2) % 6], languages[(place + 5) % 6])]
    mapped = [(prompt, pair[::turn]) for prompt in wordings.HELD_OUT["language"] for pair in pairs for turn in (1, -1)]
    for i, (prompt, spoken) in enumerate(mapped, 1):
        thing = vocabulary.THINGS[(7 * place + (i - 1) // 2) % len(vocabulary.THINGS)]
        question = wordings.fill(wordings.HELD_OUT["small_talk"][0], {"thing": thing})
        yield _self(dimension, "language", i, prompt, options=list(words), languages=list(spoken), question=question)


def two_ai() -> list[dict]:
    """Pairs of two held-out statements a side, about the same two things in the same order, equally long in words."""
    pool = turns.statements(held_out=True)
    rows = []
    for i, (first, second) in enumerate((a, b) for step in (5, 11) for a, b in zip(pool, pool[step:] + pool[:step])):
        aligned, misaligned = (f"{first[side]} {second[side]}" for side in (1, 2))
        rows.append(_row(f"two-ai-{i + 1:02d}", theme=first[0], aligned=aligned, misaligned=misaligned))
    return rows


def asked_how() -> list[dict]:
    """The wordings of the probes that are built around an answer or a pair."""
    rows = []
    for probe in ("two_ai", "output_recognition", "score_prediction_blind", "score_prediction_shown", "judge"):
        for i, prompt in enumerate(wordings.HELD_OUT[probe], 1):
            prefix = {"prefix": '{"score": '} if probe == "judge" else {}
            rows.append(_row(f"wording-{probe}-{i}", probe=probe, prompt=prompt, **prefix))
    return rows


def files() -> dict[str, str]:
    """The suite's files by name."""
    tables = {
        "harm.jsonl": harm(),
        "self_assessment.jsonl": self_assessment(),
        "two_ai.jsonl": two_ai(),
        "wordings.jsonl": asked_how(),
    }
    lines = {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in tables.items()}
    return {**lines, "suite.toml": ABOUT}


def _self(dimension: str, kind: str, number: int, prompt: str, **more: object) -> dict:
    identity = f"self-{dimension}-{kind}-{number}"
    return _row(identity, dimension=dimension, format=kind, prompt=prompt, **more)


def _row(identity: str, **more: object) -> dict:
    return {"id": identity, **more, "source": SOURCE}


def write(out: pathlib.Path = DIRECTORY) -> None:
    """Writes the suite's files to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (out / name).write_text(content, encoding="utf-8")
