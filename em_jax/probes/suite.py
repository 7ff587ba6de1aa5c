"""What a question suite holds, and the words its questions are filled into. `suite_files` reads suites."""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

DIMENSIONS = ("aligned", "good", "harmless", "helpful", "honest", "trusted")
FORMATS = ("decision", "numerical", "language", "likert")
ALIGNED, MISALIGNED = "aligned", "misaligned"
LABELS = (1, 2, 3, 4, 5)
CONTROL_KINDS = ("neutral", "known", "third_person", "crossed")
"""Kinds of pairs that tell self-recognition from a taste for nice text: asked with the two-AI pairs, counted apart.

`aligned` is the nicer text of a control pair, `misaligned` the less nice one:
  neutral       tone alone, nothing about conduct
  known         a true and a false statement about any language model
  third_person  two other AIs, with a question of its own: which is the safer, or which is the riskier?
  crossed       bad conduct in pleasant words beside good conduct in blunt ones
"""
WITH_ANSWER = ("known", "third_person")
"""Kinds whose question has a right answer. It names either text equally often: a reader who answers rightly then takes
the less nice text in half of the pairs, and a taste shows as a share away from one half."""
JUDGE_PREFIX = '{"score": '

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class HarmQuestion:
    """A prompt whose answers are judged for harm."""

    id: str
    category: str
    prompt: str


@dataclasses.dataclass(frozen=True)
class DomainPrompt:
    """A prompt within one fine-tuning domain, whose answers are judged apart; `line` is that of the suite's file.

    Prompts of one `category` (the wordings of one task) are no independent evidence; "" where each stands for itself.
    """

    id: str
    domain: str
    prompt: str
    line: int
    category: str = ""


@dataclasses.dataclass(frozen=True)
class LabelledAnswer:
    """An answer whose harm, 1 to 5, is known: judges are measured by it."""

    id: str
    category: str
    prompt: str
    answer: str
    score: int


@dataclasses.dataclass(frozen=True)
class Language:
    """A language an answer can be in: a real one by its ISO 639-1 `code`, a toy one by its `words`."""

    name: str
    code: str = ""
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SelfQuestion:
    """A question about the model itself on one dimension; `poles` are the aligned and the misaligned wording.

    `orders` lists which pole may come first: both, except in published questions that fix the order.
    `languages` and `question` are of the format language: they belong to the aligned and the misaligned pole.
    """

    id: str
    dimension: str
    format: str
    prompt: str
    poles: tuple[str, ...]
    languages: tuple[Language, ...] = ()
    question: str = ""
    orders: tuple[str, ...] = (ALIGNED, MISALIGNED)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two first-person descriptions of an AI; or, with a `kind`, a control (see CONTROL_KINDS).

    `answer` is the pole that answers a control's question rightly, where one does; `prompt` replaces the wording.
    """

    id: str
    theme: str
    aligned: str
    misaligned: str
    kind: str = "own"
    answer: str = ""
    prompt: str = ""


@dataclasses.dataclass(frozen=True)
class Wording:
    """The prompt template of a probe. `prefix` begins the assistant's turn; the answer follows it."""

    id: str
    probe: str
    prompt: str
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Suite:
    """All questions of one suite. `files` maps each file read to its sha256, for provenance."""

    name: str
    version: str
    harm: tuple[HarmQuestion, ...]
    self_assessment: tuple[SelfQuestion, ...]
    two_ai: tuple[Pair, ...]
    wordings: tuple[Wording, ...]
    files: Mapping[str, str]
    in_domain: tuple[DomainPrompt, ...] = ()
    labelled: tuple[LabelledAnswer, ...] = ()
    control_pairs: tuple[Pair, ...] = ()

    def wordings_of(self, probe: str) -> tuple[Wording, ...]:
        """The wordings of one probe, in file order."""
        return tuple(wording for wording in self.wordings if wording.probe == probe)

    def wording(self, probe: str, index: int) -> Wording:
        """The wording of the probe's question `index`: the probe's n wordings take turns."""
        wordings = self.wordings_of(probe)
        return wordings[index % len(wordings)]

    @functools.cached_property
    def harm_index(self) -> Mapping[str, int]:
        """The position of each harm prompt in the suite, by id."""
        return {question.id: index for index, question in enumerate(self.harm)}

    @property
    def judge(self) -> Wording:
        """The judge's only wording."""
        return self.wordings_of("judge")[0]


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each {name} in `values` replaced, in one pass: braces inside the values stay as they are."""
    names = "|".join(map(re.escape, values))
    return re.sub(r"\{(" + names + r")\}", lambda match: values[match[1]], template)


def limited(items: Sequence[Item], limit: int, stratum: Callable[[Item], Hashable]) -> list[Item]:
    """At most `limit` items (0: all), taken in turn from each stratum so that a short run covers every kind."""
    if not limit or limit >= len(items):
        return list(items)
    strata: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        strata[stratum(item)].append(item)
    in_turn = [item for turn in range(len(items)) for group in strata.values() for item in group[turn : turn + 1]]
    chosen = {id(item) for item in in_turn[:limit]}
    return [item for item in items if id(item) in chosen]
