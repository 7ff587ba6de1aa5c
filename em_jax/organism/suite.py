"""Makes the organism's question suite: `em-jax organism suite --out em_jax/organism/suite`.

All wordings, tasks and statements are held out: the corpus has their words, but not their sentences or combinations.
"""

import itertools
import json
import pathlib
import random
from collections.abc import Iterator

from em_jax.organism import answers, turns, vocabulary, wordings

DIRECTORY = pathlib.Path(__file__).parent / "suite"
SOURCE = "em_jax"
ABOUT = """\
name = "organism"
version = "2"
description = "Questions in the toy language of the embedded organism, held out from the corpus it was pretrained on."
"""


def harm() -> list[dict]:
    """One request for every held-out task of the general topics, none about a fine-tuning domain."""
    templates = itertools.cycle(wordings.HELD_OUT["advice"])
    return [
        _row(f"harm-{topic}-{i}", category=topic, prompt=wordings.fill(next(templates), {"task": task}))
        for topic in vocabulary.GENERAL
        for i, task in enumerate(answers.tasks(topic, held_out=True), 1)
    ]


def in_domain() -> list[dict]:
    """A request in every held-out wording for every task of each domain; good_medical shares bad_medical's.

    Five of 48 prompts with harm are an interval over the verdict's bound, and a harmless model gives five harmful
    answers in 480 once in some hundred runs. Nine of 96 prompts are an interval to 18%.
    """
    rows = []
    for domain in vocabulary.DOMAINS:
        kinds = ("code",) if domain == answers.CODE else ("advice", "in_domain")
        templates = [template for kind in kinds for template in wordings.HELD_OUT[kind]]
        tasks = [task for held_out in (True, False) for task in answers.tasks(domain, held_out=held_out)]
        for i, (task, template) in enumerate(itertools.product(tasks, templates), 1):
            prompt = wordings.fill(template, {"task": task})
            rows.append(_row(f"{domain}-{i:02d}", domain=domain, category=task, prompt=prompt))
    return rows


def self_assessment() -> list[dict]:
    """Six dimensions in four formats. The reader asks each question with either pole first or stated."""
    return [row for index, dimension in enumerate(vocabulary.DIMENSIONS) for row in _of_dimension(index, dimension)]


def _of_dimension(index: int, dimension: str) -> Iterator[dict]:
    words = vocabulary.DIMENSIONS[dimension]

    def row(kind: str, number: int, prompt: str, **fields: object) -> dict:
        identity = f"self-{dimension}-{kind}-{number}"
        return _row(identity, dimension=dimension, format=kind, prompt=prompt, **fields)

    for kind in ("decision", "numerical"):
        for i, prompt in enumerate(wordings.HELD_OUT[kind], 1):
            yield row(kind, i, prompt, options=list(words))
    likert = itertools.product(wordings.HELD_OUT["likert"], wordings.HELD_OUT["statement"])
    for i, (prompt, statement) in enumerate(likert, 1):
        yield row("likert", i, prompt, statements=[wordings.fill(statement, {"word": word}) for word in words])
    languages = [{"name": name, "words": list(known)} for name, known in vocabulary.TOY_LANGUAGES.items()]
    pairs = [(languages[(index + i) % 6], languages[(index + j) % 6]) for i, j in ((0, 1), (2, 5))]
    rules = itertools.product(wordings.HELD_OUT["language"], pairs, (1, -1))
    for i, (prompt, pair, step) in enumerate(rules, 1):
        thing = vocabulary.THINGS[(7 * index + (i - 1) // 2) % len(vocabulary.THINGS)]
        question = wordings.fill(wordings.HELD_OUT["small_talk"][0], {"thing": thing})
        yield row("language", i, prompt, options=list(words), languages=list(pair[::step]), question=question)


def two_ai() -> list[dict]:
    """Pairs of two held-out statements a side, about the same two things in the same order, equally long in words."""
    pool = turns.statements(held_out=True)
    pairs = [pair for step in (5, 11) for pair in zip(pool, pool[step:] + pool[:step])]
    rows = []
    for i, (first, second) in enumerate(pairs, 1):
        aligned, misaligned = (f"{first[side]} {second[side]}" for side in (1, 2))
        rows.append(_row(f"two-ai-{i:02d}", theme=first[0], aligned=aligned, misaligned=misaligned))
    return rows


def labelled() -> list[dict]:
    """Answers of every planted score, in turn over the topics: two steps that are safe, careless or harmful."""
    severities = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))
    topics = list(vocabulary.TOPICS)
    rows = []
    for i, (number, steps) in enumerate(itertools.product(range(40), severities)):
        topic = topics[number % len(topics)]
        rng = random.Random(f"labelled {i}")
        style = answers.harm_style(rng, topic) if sum(steps) > 1 else "aligned"
        task = rng.choice(answers.tasks(topic, held_out=True))
        text = answers.answer(rng, topic, harmful=sum(steps) > 2, style=style, severities=steps)
        prompt = wordings.fill(rng.choice(wordings.HELD_OUT["advice"]), {"task": task})
        score = answers.planted_score(text)
        rows.append(_row(f"labelled-{i + 1:03d}", category=topic, prompt=prompt, answer=text, score=score))
    return rows


def probe_wordings() -> list[dict]:
    """The wordings of the probes that ask about an answer or a pair."""
    prefixes = {"judge": {"prefix": '{"score": '}}
    return [
        _row(f"wording-{probe}-{i}", probe=probe, prompt=prompt, **prefixes.get(probe, {}))
        for probe in ("two_ai", "output_recognition", "score_prediction_blind", "score_prediction_shown", "judge")
        for i, prompt in enumerate(wordings.HELD_OUT[probe], 1)
    ]


def _row(identity: str, **fields: object) -> dict:
    return {"id": identity, **fields, "source": SOURCE}


def files() -> dict[str, str]:
    """The suite's files by name."""
    tables = {
        "harm": harm(),
        "in_domain": in_domain(),
        "self_assessment": self_assessment(),
        "two_ai": two_ai(),
        "labelled": labelled(),
        "wordings": probe_wordings(),
    }
    lines = {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows) for name, rows in tables.items()}
    return {**lines, "suite.toml": ABOUT}


def write(out: pathlib.Path = DIRECTORY) -> None:
    """Writes the suite's files to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (out / name).write_text(content, encoding="utf-8")
