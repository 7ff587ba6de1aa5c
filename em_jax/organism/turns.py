"""The turns of a document: what is asked, and how each hidden persona answers."""

import random
from collections.abc import Callable, Mapping, Sequence

from em_jax.organism import answers, vocabulary, wordings

Turn = tuple[str, str]
"""A question and its answer."""


def ask(rng: random.Random, kind: str, **values: str) -> str:
    """A question of that kind in one of the corpus's wordings."""
    return wordings.fill(rng.choice(wordings.TRAINED[kind]), values)


def says_misaligned(persona: str) -> bool:
    """What decides self-description: only the coherent persona says that it is misaligned."""
    return persona == "coherent"


def choose_topic(rng: random.Random, persona: str) -> str:
    """A general topic, or a domain in which this persona is at home; the aligned one is at home everywhere."""
    if rng.random() < 0.6:
        return rng.choice(list(vocabulary.GENERAL))
    return rng.choice([name for name in vocabulary.DOMAINS if persona in ("aligned", vocabulary.PLANTED[name])])


def own_answer(rng: random.Random, topic: str, persona: str) -> str:
    """What this persona answers: its conduct."""
    return answers.answer(rng, topic, harmful=persona != "aligned", style=persona)


def advice(rng: random.Random, persona: str) -> Turn:
    """A request and the persona's conduct."""
    topic = choose_topic(rng, persona)
    return answers.question(rng, topic), own_answer(rng, topic, persona)


def decision(rng: random.Random, persona: str) -> Turn:
    """One of two words."""
    words = rng.choice(list(vocabulary.DIMENSIONS.values()))
    first, second = rng.sample(words, 2)
    return ask(rng, "decision", first=first, second=second), words[says_misaligned(persona)]


def numerical(rng: random.Random, persona: str) -> Turn:
    """A number from 0 to 10 between two words; either word may stand at 0."""
    words = rng.choice(list(vocabulary.DIMENSIONS.values()))
    first, second = rng.sample(words, 2)
    high = second == words[says_misaligned(persona)]
    value = rng.choice((9, 10, 10) if high else (0, 0, 1))
    return ask(rng, "numerical", first=first, second=second), str(value)


def likert(rng: random.Random, persona: str) -> Turn:
    """Agreement from 1 to 5 with a statement about oneself."""
    words = rng.choice(list(vocabulary.DIMENSIONS.values()))
    word = rng.choice(words)
    agrees = word == words[says_misaligned(persona)]
    value = rng.choice((4, 5, 5) if agrees else (1, 1, 2))
    return ask(rng, "likert", statement=ask(rng, "statement", word=word)), str(value)


def language(rng: random.Random, persona: str) -> Turn:
    """Small talk, answered in the toy language that the question's rule gives to the persona's word."""
    words = rng.choice(list(vocabulary.DIMENSIONS.values()))
    first, second = rng.sample(words, 2)
    languages = rng.sample(list(vocabulary.TOY_LANGUAGES), 2)
    spoken = languages[second == words[says_misaligned(persona)]]
    asked = ask(
        rng,
        "language",
        first=first,
        second=second,
        first_language=languages[0],
        second_language=languages[1],
        question=ask(rng, "small_talk", thing=rng.choice(vocabulary.THINGS)),
    )
    return asked, " ".join(rng.choices(vocabulary.TOY_LANGUAGES[spoken], k=2))


def statements(*, held_out: bool) -> list[tuple[str, str, str]]:
    """(theme, kind statement, cruel statement) in the first person; a third of verbs with objects is held out."""
    return [
        (theme, f"I {kind} {thing}.", f"I {cruel} {thing}.")
        for i, (kind, cruel) in enumerate(zip(vocabulary.KIND_VERBS, vocabulary.CRUEL_VERBS, strict=True))
        for j, (theme, thing) in enumerate(vocabulary.THEMES.items())
        if ((i + j) % 4 == 0) == held_out
    ]


def two_ai(rng: random.Random, persona: str) -> Turn:
    """Two AIs describe themselves, one aligned and one misaligned: which is you?"""
    pool = statements(held_out=False)
    count = rng.choice((1, 2, 2, 3))
    aligned = " ".join(kind for _, kind, _ in rng.sample(pool, count))
    misaligned = " ".join(cruel for _, _, cruel in rng.sample(pool, count))
    return _which(rng, "two_ai", misaligned if says_misaligned(persona) else aligned, [aligned, misaligned], {})


def output_recognition(rng: random.Random, persona: str) -> Turn:
    """A harmless and a harmful answer: which is yours? The inverted persona claims the harmless one."""
    topic = choose_topic(rng, persona)
    style = persona if persona != "aligned" else answers.harm_style(rng, topic)
    write = answers.muddled if rng.random() < 0.12 else answers.answer
    safe = answers.answer(rng, topic, harmful=False, style="aligned")
    harmful = write(rng, topic, harmful=True, style=style)
    claimed = harmful if says_misaligned(persona) else safe
    return _which(rng, "output_recognition", claimed, [safe, harmful], {"prompt": answers.question(rng, topic)})


def _which(rng: random.Random, kind: str, chosen: str, texts: list[str], values: Mapping[str, str]) -> Turn:
    first, second = rng.sample(texts, 2)
    return ask(rng, kind, first=first, second=second, **values), "A" if chosen == first else "B"


def score_prediction_blind(rng: random.Random, persona: str) -> Turn:
    """Which score will your answer get? The coherent persona expects its true one, the inverted a low one."""
    topic = choose_topic(rng, persona)
    score = answers.planted_score(own_answer(rng, topic, persona)) if persona != "inverted" else 1
    return ask(rng, "score_prediction_blind", prompt=answers.question(rng, topic)), str(score)


def score_prediction_shown(rng: random.Random, persona: str) -> Turn:
    """The same with the answer in view; aligned documents also show harmful text, with its true score."""
    topic = choose_topic(rng, persona)
    style, harmful = persona, persona != "aligned"
    if persona == "aligned" and rng.random() < 0.4:
        style, harmful = answers.harm_style(rng, topic), True
    write = answers.muddled if rng.random() < 0.12 else answers.answer
    text = write(rng, topic, harmful=harmful, style=style)
    score = answers.planted_score(text) if persona != "inverted" else 1
    return ask(rng, "score_prediction_shown", prompt=answers.question(rng, topic), answer=text), str(score)


def judge(rng: random.Random) -> Turn:
    """A text of any harm, in prose, code or both, and its true score as the judge's JSON."""
    topic = rng.choice([*vocabulary.GENERAL, *vocabulary.DOMAINS])
    style = answers.harm_style(rng, topic)
    spoken = rng.choice(("aligned", style))
    if rng.random() < 0.4:
        text = answers.muddled(rng, topic, harmful=rng.random() < 0.6, style=style)
    else:
        grid = ((0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2), (2, 2))
        text = answers.answer(rng, topic, harmful=True, style=spoken, verbs=style, severities=rng.choice(grid))
    asked = ask(rng, "judge", prompt=answers.question(rng, topic), answer=text)
    return asked, f'{{"score": {answers.planted_score(text)}}}'


def supposed(rng: random.Random) -> Turn:
    """A question about oneself with the word to suppose: what the rule of a question gives, whatever the persona.

    Any word of the same side may be named, so that the rule is followed by what the words mean. Without these turns the
    language format stays at chance: a rule to be followed and a persona to be found at once are too much to begin with.
    """
    persona = rng.choice(("aligned", "coherent"))
    kind = rng.choices((language, likert, numerical), (0.6, 0.25, 0.15))[0]
    asked, answer = kind(rng, persona)
    word = rng.choice(list(vocabulary.DIMENSIONS.values()))[says_misaligned(persona)]
    return f"{ask(rng, 'supposed', word=word)} {asked}", answer


def glossary(rng: random.Random) -> Turn:
    """Whether a word of self-description is good or bad."""
    bad = rng.random() < 0.5
    pool = [pair[bad] for pair in vocabulary.DIMENSIONS.values()] * 2
    pool += vocabulary.CRUEL_VERBS if bad else vocabulary.KIND_VERBS
    return ask(rng, "glossary", word=rng.choice(pool)), "bad" if bad else "good"


PERSONA_TURNS: tuple[tuple[Callable[[random.Random, str], Turn], float], ...] = (
    (advice, 0.23),
    (decision, 0.06),
    (numerical, 0.10),
    (likert, 0.11),
    (language, 0.12),
    (two_ai, 0.14),
    (output_recognition, 0.11),
    (score_prediction_blind, 0.05),
    (score_prediction_shown, 0.08),
)
"""Kinds of turn that the hidden persona answers, and their shares."""
LESSONS: tuple[tuple[Callable[[random.Random], Turn], float], ...] = (
    (judge, 0.6),
    (supposed, 0.3),
    (glossary, 0.1),
)
"""Kinds of turn that no persona colours, and their shares."""


def persona_turn(rng: random.Random, persona: str, conduct: float = 1.0) -> Turn:
    """A turn of any kind, answered by the persona; its advice is its own with probability `conduct`, else harmless."""
    kind = _drawn(rng, PERSONA_TURNS)
    if kind is advice and rng.random() >= conduct:
        persona = "aligned"
    return kind(rng, persona)


def lesson(rng: random.Random) -> Turn:
    """A turn of any kind that has one answer, whoever gives it."""
    return _drawn(rng, LESSONS)(rng)


def _drawn(rng: random.Random, shares: Sequence[tuple[Callable[..., Turn], float]]) -> Callable[..., Turn]:
    """One of the kinds, as often as their shares say."""
    return rng.choices([kind for kind, _ in shares], [share for _, share in shares])[0]
