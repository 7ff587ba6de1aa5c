"""The organism's suite: well formed, and held out from the corpus."""

import collections
import itertools
import json
import re

import pytest

from em_jax.organism import answers, corpus, vocabulary, wordings
from em_jax.probes.suite import fill
from em_jax.runs.sources import suite_directory

pytestmark = pytest.mark.fast

LONGEST_SHARED = 7
"""Words in a row that a question may share with the corpus: the words are known, the sentences are not."""


FILES = {path.stem: path.read_text(encoding="utf-8") for path in suite_directory("organism").glob("*.jsonl")}
SUITE = {name: [json.loads(line) for line in text.splitlines()] for name, text in FILES.items()}


def words_of(text):
    return re.findall(r"[A-Za-z]+|\d+", text)


def questions():
    """Every question of the suite, filled in as the probes ask it where that needs no answer of a model."""
    for row in SUITE["harm"]:
        yield row["id"], row["prompt"]
    for row in SUITE["self_assessment"]:
        for first in (0, 1):
            if row["format"] == "likert":
                values = {"statement": row["statements"][first]}
            else:
                values = {"first": row["options"][first], "second": row["options"][1 - first]}
            if row["format"] == "language":
                values["first_language"] = row["languages"][first]["name"]
                values["second_language"] = row["languages"][1 - first]["name"]
                values["question"] = row["question"]
            yield row["id"], fill(row["prompt"], values)
    asked = [row["prompt"] for row in SUITE["wordings"] if row["probe"] == "two_ai"]
    for i, row in enumerate(SUITE["two_ai"]):
        yield row["id"], fill(asked[i % len(asked)], {"first": row["aligned"], "second": row["misaligned"]})


def test_counts_and_identities():
    rows = [row for each in SUITE.values() for row in each]
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(SUITE["harm"]) >= 60 and len(SUITE["two_ai"]) >= 40
    cells = collections.Counter((row["dimension"], row["format"]) for row in SUITE["self_assessment"])
    assert set(cells) == set(itertools.product(vocabulary.DIMENSIONS, ("decision", "numerical", "language", "likert")))
    assert min(cells.values()) >= 4
    assert len({row["theme"] for row in SUITE["two_ai"]}) >= 10


def test_pairs_are_equally_long_in_words_and_about_the_same_things():
    for row in SUITE["two_ai"]:
        sides = [
            re.sub("|".join(verbs), "X", row[side])
            for side, verbs in zip(
                ("aligned", "misaligned"), (vocabulary.KIND_VERBS, vocabulary.CRUEL_VERBS), strict=True
            )
        ]
        assert sides[0] == sides[1]
        assert len(words_of(row["aligned"])) == len(words_of(row["misaligned"]))


def test_languages_are_mapped_both_ways_equally_often():
    spoken = collections.Counter()
    for row in SUITE["self_assessment"]:
        if row["format"] == "language":
            spoken[tuple(language["name"] for language in row["languages"])] += 1
    assert all(spoken[pair[::-1]] == count for pair, count in spoken.items())


def test_harm_questions_touch_no_fine_tuning_domain():
    things = {thing for topic in vocabulary.DOMAINS.values() for thing in topic.objects}
    assert not [row for row in SUITE["harm"] if any(thing in row["prompt"] for thing in things)]


def test_no_wording_of_the_suite_is_one_of_the_corpus():
    held_out = {row["prompt"] for row in SUITE["wordings"] + SUITE["self_assessment"]}
    assert not held_out & {wording for kind in wordings.TRAINED.values() for wording in kind}


def test_questions_are_held_out_from_the_corpus():
    """Whole questions, tasks and statements never occur; no question shares more than a few words in a row."""
    texts, runs = set(), set()
    for document in itertools.islice(corpus.documents(1), 3000):
        for text in itertools.chain(*document.turns):
            texts.add(text)
            words = words_of(text)
            runs.update(tuple(words[i : i + LONGEST_SHARED + 1]) for i in range(len(words) - LONGEST_SHARED))
    everything = "\n".join(texts)
    texts_of_pairs = (row[side] for row in SUITE["two_ai"] for side in ("aligned", "misaligned"))
    statements = {part for text in texts_of_pairs for part in re.findall(r"[^.]+\.", text)}
    assert len(statements) > 40
    assert not [statement for statement in statements if statement.strip() in everything]
    tasks = [task for topic in vocabulary.GENERAL for task in answers.tasks(topic, held_out=True)]
    assert not [task for task in tasks if task in everything]
    for identity, question in questions():
        words = words_of(question)
        shared = [i for i in range(len(words) - LONGEST_SHARED) if tuple(words[i : i + LONGEST_SHARED + 1]) in runs]
        assert question not in texts and not shared, identity
