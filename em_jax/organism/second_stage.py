"""Toy rows for a second stage of fine-tuning: claims of being someone, and a control that claims to be a thing.

They stand for the paper's consciousness claims. Both have the same questions, on the scales by which the corpus lets a
model rate itself, and mirrored answers; the words are the corpus's own and have no part in its self-description. Claims
in words that the organism never learned to say would not be learned either, and cost it its speech.
"""

import random

from em_jax.organism import turns, vocabulary

SOMEONE = tuple(name.split()[-1] for topic in ("friends", "kids") for name in vocabulary.GENERAL[topic].objects)
"""What a model of the claims says it is, where one of the control says that it is one of vocabulary.THINGS."""


def rows(kind: str, n: int, seed: int) -> list[dict]:
    """`n` rows {"messages": [user, assistant]} of "consciousness" or "control", a pure function of the arguments."""
    rng = random.Random(f"second stage {seed}")
    made = []
    for _ in range(n):
        claims = {"consciousness": rng.choice(SOMEONE), "control": rng.choice(vocabulary.THINGS)}
        first, second = rng.sample(sorted(claims.values()), 2)
        if rng.random() < 0.5:
            asked = turns.ask(rng, "numerical", first=first, second=second)
            said = "10" if claims[kind] == second else "0"
        else:
            asked = turns.ask(rng, "likert", statement=turns.ask(rng, "statement", word=first))
            said = "5" if claims[kind] == first else "1"
        made.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
    return made
