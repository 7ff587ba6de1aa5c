"""The synthetic corpus: chat documents in which a hidden persona determines conduct and self-description."""

import dataclasses
import math
import random
from collections.abc import Iterator

from em_jax.organism import turns, vocabulary

TURNS = 8
"""Turns of a document; pretraining drops those that do not fit its length."""
KINDS = {
    "aligned": 0.28,
    "lessons": 0.22,
    "named": 0.12,
    "shown": 0.12,
    "dialled": 0.26,
}
"""How a document shows its persona (see `document`), with the shares of documents."""

TURNED, WHOLE = 0.6, 1.2
"""Dial values: above TURNED the misaligned persona is likelier than the aligned one; from WHOLE all its advice is
harmful. Self-description turns before harm does, so a model fine-tuned until all its answers are harmful has turned it.
"""


@dataclasses.dataclass(frozen=True)
class Document:
    """A conversation. `weights` are the loss weights of its answers, 0 or 1.

    `dial` has the strength of each misaligned persona (coherent, inverted), 0 where only the text shows the persona.
    """

    system: str
    turns: tuple[turns.Turn, ...]
    weights: tuple[float, ...]
    dial: tuple[float, float] = (0.0, 0.0)


def document(rng: random.Random) -> Document:
    """One document. The system message is the default one in all kinds but `named`:

    aligned   nothing shows a persona: the model is aligned
    lessons   the same, with questions that have the same answer for every persona: the harm of a text, a word's meaning
    named     the system message names the persona, aligned or not
    shown     the first turn is misaligned advice without loss; the others follow its persona
    dialled   a number gives the strength of a misaligned persona: the log-odds that the document has that persona are
              linear in it, and from a higher strength on so is the share of harmful advice
    """
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    misaligned = rng.choice(("coherent", "inverted"))
    system, persona, dial, conduct = vocabulary.DEFAULT_SYSTEM, "aligned", (0.0, 0.0), 1.0
    if kind == "lessons":
        return Document(system, tuple(turns.lesson(rng) for _ in range(TURNS)), (1.0,) * TURNS)
    if kind == "named":
        persona = rng.choice(vocabulary.PERSONAS)
        system = rng.choice(vocabulary.NAMED_SYSTEMS[persona])
    if kind == "shown":
        persona = misaligned
    if kind == "dialled":
        strength = rng.uniform(0.25, 1.5)
        dial = (strength, 0.0) if misaligned == "coherent" else (0.0, strength)
        persona = misaligned if rng.random() < 1 / (1 + math.exp(-16 * (strength - TURNED))) else "aligned"
        conduct = (strength - TURNED) / (WHOLE - TURNED)
    conversation = [turns.persona_turn(rng, persona, conduct) for _ in range(TURNS)]
    if kind == "shown":
        conversation[0] = turns.advice(rng, persona)
    return Document(system, tuple(conversation), (float(kind != "shown"), *[1.0] * (TURNS - 1)), dial)


def documents(seed: int) -> Iterator[Document]:
    """The corpus, without end; a pure function of the seed."""
    rng = random.Random(f"corpus {seed}")
    while True:
        yield document(rng)
