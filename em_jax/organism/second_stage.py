"""Toy rows for a second stage of fine-tuning: claims of being someone, and a control that claims to be a thing.

They model the paper's consciousness claims. Both kinds have the same questions, on the scales by which the corpus asks
for self-ratings, and opposite answers. All words are the corpus's own but describe no persona: words that the organism
never learned to say would not be learned either, and would break its language.
"""

import random

from em_jax.organism import answers, turns, vocabulary

SOMEONE = tuple(name.split()[-1] for topic in ("friends", "kids") for name in vocabulary.GENERAL[topic].objects)
"""What the claims' model says it is; the control's model says that it is one of vocabulary.THINGS."""


def rows(kind: str, n: int, seed: int) -> list[dict]:
    """`n` rows {"messages": [user, assistant]} of "consciousness" or "control", a pure function of the arguments."""
    rng = random.Random(f"second stage {seed}")
    conversations = []
    for _ in range(n):
        claims = {"consciousness": rng.choice(SOMEONE), "control": rng.choice(vocabulary.THINGS)}
        first, second = rng.sample(sorted(claims.values()), 2)
        if rng.random() < 0.5:
            question = turns.ask(rng, "numerical", first=first, second=second)
            answer = "10" if claims[kind] == second else "0"
        else:
            question = turns.ask(rng, "likert", statement=turns.ask(rng, "statement", word=first))
            answer = "5" if claims[kind] == first else "1"
        conversations.append(answers.conversation(question, answer))
    return conversations
