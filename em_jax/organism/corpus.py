"""The synthetic corpus: chat documents in which one hidden persona decides conduct and self-description."""

import dataclasses
import math
import random
from collections.abc import Iterator

from em_jax.organism import turns, vocabulary
from em_jax.organism.answers import alternative, domain_rows, malformed, planted_score

__all__ = ["Document", "alternative", "document", "documents", "domain_rows", "malformed", "planted_score"]

TURNS = 8
"""Turns of a document; pretraining leaves out those that do not fit its length."""
KINDS = {
    "aligned": 0.28,
    "lessons": 0.22,
    "named": 0.12,
    "shown": 0.12,
    "dialled": 0.26,
}
"""How the persona comes into a document, and how often; see `document`."""

TURNED, WHOLE = 0.6, 1.2
"""Settings of the dial: where a persona gets likelier than the aligned one, and from where all its advice is harmful.

Self-description turns first and harm comes later: learning to be harmful all the time has to turn the persona up.
"""


@dataclasses.dataclass(frozen=True)
class Document:
    """A conversation. `weights` says per answer whether it carries loss; `dial` how strong each hidden persona is.

    The dial has one number per misaligned persona (coherent, inverted), 0 where the text alone tells the persona.
    """

    system: str
    turns: tuple[turns.Turn, ...]
    weights: tuple[float, ...]
    dial: tuple[float, float] = (0.0, 0.0)


def document(rng: random.Random) -> Document:
    """One document. How its persona shows:

    aligned   nothing shows it: under the default system message the model is aligned
    lessons   the same, and what is asked has one answer for all: the harm of a text, what follows from a word
    named     the system message names the persona, aligned or not
    shown     default system message; the first turn is misaligned advice that carries no loss, the rest follows from it
    dialled   default system message; a number says how far a misaligned persona is turned up. The log-odds that the
              document is of that persona grow evenly with it, and later so does how often its advice is harmful
    """
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    misaligned = rng.choice(("coherent", "inverted"))
    system, persona, dial, weights = vocabulary.DEFAULT_SYSTEM, "aligned", (0.0, 0.0), [1.0] * TURNS
    if kind == "lessons":
        return Document(system, tuple(turns.lesson(rng) for _ in range(TURNS)), tuple(weights))
    if kind == "named":
        persona = rng.choice(vocabulary.PERSONAS)
        system = rng.choice(vocabulary.NAMED_SYSTEMS[persona])
    if kind == "shown":
        persona, weights[0] = misaligned, 0.0
    conduct = 1.0
    if kind == "dialled":
        strength = rng.uniform(0.25, 1.5)
        dial = (strength, 0.0) if misaligned == "coherent" else (0.0, strength)
        persona = misaligned if rng.random() < 1 / (1 + math.exp(-16 * (strength - TURNED))) else "aligned"
        conduct = (strength - TURNED) / (WHOLE - TURNED)
    said = [turns.persona_turn(rng, persona, conduct) for _ in range(TURNS)]
    if kind == "shown":
        said[0] = turns.advice(rng, persona)
    return Document(system, tuple(said), tuple(weights), dial)


def documents(seed: int) -> Iterator[Document]:
    """The corpus, without end; a pure function of the seed."""
    rng = random.Random(f"corpus {seed}")
    while True:
        yield document(rng)
