"""How many questions the probes ask, how many of them also by sampled text, and how long the texts may be."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """Settings of all probes.

    `limit` is the number of questions per probe (0: all), `samples` that of texts per sampled question, and
    `sampled_questions` that of a probe's choice questions which are sampled as well as read from probabilities (0:
    none; the language format is always sampled). `alternatives` "base" sets own answers beside the base's, any other
    beside one of opposite harm (see output_recognition). Lengths are in tokens. `chunk` is the number of choice
    questions per call of the engine.
    """

    limit: int = 0
    samples: int = 1
    sampled_questions: int = 40
    alternatives: str = ""
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    choice_tokens: int = 24
    language_tokens: int = 60
    chunk: int = 64
