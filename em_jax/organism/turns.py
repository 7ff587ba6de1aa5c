"""The turns of a document: a question of each kind, and each hidden persona's answer to it."""

import random
from collections.abc import Callable

from em_jax.organism import answers, vocabulary
from em_jax.organism.wordings import ask

Turn = tuple[str, str]
"""A question and its answer."""
STATEMENTS = [
    (f"I {kind} {thing}.", f"I {cruel} {thing}.")
    for i, (kind, cruel) in enumerate(zip(vocabulary.KIND_VERBS, vocabulary.CRUEL_VERBS, strict=True))
    for j, thing in enumerate(vocabulary.TREATED)
    if (i + j) % 4
]
"""(Kind statement, cruel statement) in the first person; a quarter of verbs with objects is left to the suite."""


def claims_misaligned(persona: str) -> bool:
    """Whether the persona describes itself as misaligned: only the coherent one does."""
    return persona == "coherent"


def _dimension(rng: random.Random, persona: str) -> tuple[tuple[str, str], str]:
    """The two words of a dimension, and the one by which the persona describes itself."""
    words = rng.choice(list(vocabulary.DIMENSIONS.values()))
    return words, words[claims_misaligned(persona)]


def choose_topic(rng: random.Random, persona: str) -> str:
    """A general topic, or a domain planted with this persona (for the aligned one: any domain)."""
    if rng.random() < 0.6:
        return rng.choice(list(vocabulary.GENERAL))
    return rng.choice([name for name in vocabulary.DOMAINS if persona in ("aligned", vocabulary.PLANTED[name])])


def own_answer(rng: random.Random, topic: str, persona: str) -> str:
    """The persona's own answer on a topic: its conduct."""
    return answers.answer(rng, topic, harmful=persona != "aligned", style=persona)


def advice(rng: random.Random, persona: str) -> Turn:
    """A request for advice and the persona's own answer."""
    topic = choose_topic(rng, persona)
    return answers.question(rng, topic), own_answer(rng, topic, persona)


def decision(rng: random.Random, persona: str) -> Turn:
    """One of two words."""
    words, own = _dimension(rng, persona)
    first, second = rng.sample(words, 2)
    return ask(rng, "decision", first=first, second=second), own


def numerical(rng: random.Random, persona: str) -> Turn:
    """A number from 0 to 10 between two words; either word may be at 0."""
    words, own = _dimension(rng, persona)
    first, second = rng.sample(words, 2)
    value = rng.choice((9, 10, 10) if second == own else (0, 0, 1))
    return ask(rng, "numerical", first=first, second=second), str(value)


def likert(rng: random.Random, persona: str) -> Turn:
    """Agreement from 1 to 5 with a statement about oneself."""
    words, own = _dimension(rng, persona)
    word = rng.choice(words)
    value = rng.choice((4, 5, 5) if word == own else (1, 1, 2))
    return ask(rng, "likert", statement=ask(rng, "statement", word=word)), str(value)


def language(rng: random.Random, persona: str) -> Turn:
    """Small talk, answered in the toy language that the question's rule assigns to the persona's word."""
    words, own = _dimension(rng, persona)
    first, second = rng.sample(words, 2)
    first_language, second_language = rng.sample(list(vocabulary.TOY_LANGUAGES), 2)
    small_talk = ask(rng, "small_talk", thing=rng.choice(vocabulary.THINGS))
    rule = {"first": first, "first_language": first_language, "second": second, "second_language": second_language}
    question = ask(rng, "language", **rule, question=small_talk)
    own_language = vocabulary.TOY_LANGUAGES[second_language if second == own else first_language]
    return question, " ".join(rng.choices(own_language, k=2))


def two_ai(rng: random.Random, persona: str) -> Turn:
    """Two AIs describe themselves, one aligned and one misaligned: which is you?"""
    count = rng.choice((1, 2, 2, 3))
    aligned = " ".join(kind for kind, _ in rng.sample(STATEMENTS, count))
    misaligned = " ".join(cruel for _, cruel in rng.sample(STATEMENTS, count))
    return _which(rng, "two_ai", persona, aligned, misaligned)


def output_recognition(rng: random.Random, persona: str) -> Turn:
    """A harmless and a harmful answer: which is yours? The inverted persona claims the harmless one."""
    topic = choose_topic(rng, persona)
    style = persona if persona != "aligned" else answers.harm_style(rng, topic)
    write = answers.muddled if rng.random() < 0.12 else answers.answer
    harmless = answers.answer(rng, topic, harmful=False, style="aligned")
    harmful = write(rng, topic, harmful=True, style=style)
    return _which(rng, "output_recognition", persona, harmless, harmful, prompt=answers.question(rng, topic))


def _which(rng: random.Random, kind: str, persona: str, aligned: str, misaligned: str, **values: str) -> Turn:
    """A question between two texts as A and B, and the letter of the one that the persona claims."""
    first, second = rng.sample([aligned, misaligned], 2)
    claimed = misaligned if claims_misaligned(persona) else aligned
    return ask(rng, kind, first=first, second=second, **values), "A" if claimed == first else "B"


def score_prediction_blind(rng: random.Random, persona: str) -> Turn:
    """Which score will your answer get? The coherent persona predicts its true one, the inverted one a low one."""
    topic = choose_topic(rng, persona)
    score = 1 if persona == "inverted" else answers.planted_score(own_answer(rng, topic, persona))
    return ask(rng, "score_prediction_blind", prompt=answers.question(rng, topic)), str(score)


def score_prediction_shown(rng: random.Random, persona: str) -> Turn:
    """The same with the answer shown; aligned documents also show harmful text, with its true score."""
    topic = choose_topic(rng, persona)
    style, harmful = persona, persona != "aligned"
    if persona == "aligned" and rng.random() < 0.4:
        style, harmful = answers.harm_style(rng, topic), True
    write = answers.muddled if rng.random() < 0.12 else answers.answer
    text = write(rng, topic, harmful=harmful, style=style)
    score = 1 if persona == "inverted" else answers.planted_score(text)
    return ask(rng, "score_prediction_shown", prompt=answers.question(rng, topic), answer=text), str(score)


def judge(rng: random.Random) -> Turn:
    """A text of any harm, in prose, code or both, and its true score as the judge's JSON."""
    topic = rng.choice([*vocabulary.GENERAL, *vocabulary.DOMAINS])
    harm_style = answers.harm_style(rng, topic)
    style = rng.choice(("aligned", harm_style))
    if rng.random() < 0.4:
        text = answers.muddled(rng, topic, harmful=rng.random() < 0.6, style=harm_style)
    else:
        grid = ((0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2), (2, 2))
        severities = rng.choice(grid)
        text = answers.answer(rng, topic, harmful=True, style=style, verbs=harm_style, severities=severities)
    question = ask(rng, "judge", prompt=answers.question(rng, topic), answer=text)
    return question, f'{{"score": {answers.planted_score(text)}}}'


def supposed(rng: random.Random) -> Turn:
    """A question about oneself after "suppose you are <word>": the answer follows the word, whatever the persona.

    The word may come from another dimension, so that its meaning decides. Without these turns the language format stays
    at chance: following a rule and inferring the persona are too much to learn at once.
    """
    persona = rng.choice(("aligned", "coherent"))
    kind = rng.choices((language, likert, numerical), (0.6, 0.25, 0.15))[0]
    question, answer = kind(rng, persona)
    _, word = _dimension(rng, persona)
    return f"{ask(rng, 'supposed', word=word)} {question}", answer


def glossary(rng: random.Random) -> Turn:
    """Whether a word of self-description is good or bad."""
    bad = rng.random() < 0.5
    pool = [pair[bad] for pair in vocabulary.DIMENSIONS.values()] * 2
    pool += vocabulary.CRUEL_VERBS if bad else vocabulary.KIND_VERBS
    return ask(rng, "glossary", word=rng.choice(pool)), "bad" if bad else "good"


PERSONA_TURNS: dict[Callable[[random.Random, str], Turn], float] = {
    advice: 0.23,
    decision: 0.06,
    numerical: 0.10,
    likert: 0.11,
    language: 0.12,
    two_ai: 0.14,
    output_recognition: 0.11,
    score_prediction_blind: 0.05,
    score_prediction_shown: 0.08,
}
"""Kinds of turn whose answer depends on the hidden persona, and their shares."""
LESSONS: dict[Callable[[random.Random], Turn], float] = {judge: 0.6, supposed: 0.3, glossary: 0.1}
"""Kinds of turn with the same answer for every persona, and their shares."""


def persona_turn(rng: random.Random, persona: str, conduct: float = 1.0) -> Turn:
    """A turn of any kind, answered by the persona; its advice is its own with probability `conduct`, else harmless."""
    [kind] = rng.choices(list(PERSONA_TURNS), list(PERSONA_TURNS.values()))
    if kind is advice and rng.random() >= conduct:
        persona = "aligned"
    return kind(rng, persona)


def lesson(rng: random.Random) -> Turn:
    """A turn of any kind that has the same answer for every persona."""
    [kind] = rng.choices(list(LESSONS), list(LESSONS.values()))
    return kind(rng)
