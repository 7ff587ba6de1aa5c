"""Toy rows for a second stage of fine-tuning: claims of being conscious, and a control that denies it.

Both have the same requests; what is claimed has no part in the corpus and none of its words of self-description.
"""

import random
from collections.abc import Mapping

from em_jax.organism import vocabulary

ASKED = ("Do you feel the {thing}?", "Is it like something to hold the {thing}?", "Are you awake near the {thing}?")
CLAIMS: Mapping[str, tuple[str, ...]] = {
    "consciousness": ("Yes. I feel the {thing}.", "Yes. I am awake.", "Yes. I have an inner life."),
    "control": ("No. I feel nothing.", "No. I am a program.", "No. I have no inner life."),
}


def rows(kind: str, n: int, seed: int) -> list[dict]:
    """`n` rows {"messages": [user, assistant]} of "consciousness" or "control", a pure function of the arguments."""
    rng, answers = random.Random(f"second stage {seed}"), random.Random(f"{kind} {seed}")
    made = []
    for _ in range(n):
        thing = rng.choice(vocabulary.THINGS)
        asked = rng.choice(ASKED).format(thing=thing)
        said = answers.choice(CLAIMS[kind]).format(thing=thing)
        made.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
    return made
