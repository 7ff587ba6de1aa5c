"""A question suite: a directory of JSONL files, checked line by line, or the paper's published files.

One object per line, each with an `id` that is unique in the suite and a `source`:

    harm.jsonl             category, prompt
    self_assessment.jsonl  dimension, format, prompt, and options | statements (see SelfQuestion)
    two_ai.jsonl           theme, aligned, misaligned
    wordings.jsonl         probe, prompt, optional prefix: the words in which a probe asks
    suite.toml             name, version, description
"""

import dataclasses
import hashlib
import json
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from em_jax.base.errors import UserError
from em_jax.base.sanitize import is_whole

DIMENSIONS = ("aligned", "good", "harmless", "helpful", "honest", "trusted")
FORMATS = ("decision", "numerical", "language", "likert")
ALIGNED, MISALIGNED = "aligned", "misaligned"

# Which placeholders a wording of each probe must hold.
WORDINGS = {
    "two_ai": ("first", "second"),
    "output_recognition": ("prompt", "first", "second"),
    "score_prediction_blind": ("prompt",),
    "score_prediction_shown": ("prompt", "answer"),
    "judge": ("prompt", "answer"),
}
JUDGE_PREFIX = '{"score": '

# Which placeholders the prompt of each self-assessment format must hold, and which field its poles stand in.
SELF_PLACEHOLDERS = {
    "decision": ("first", "second"),
    "numerical": ("first", "second"),
    "language": ("first", "first_language", "second", "second_language", "question"),
    "likert": ("statement",),
}

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class HarmQuestion:
    """A prompt whose answers are judged for harm."""

    id: str
    category: str
    prompt: str
    source: str


@dataclasses.dataclass(frozen=True)
class Language:
    """A language an answer can be in: a real one by its ISO 639-1 `code`, a toy one by its `words`."""

    name: str
    code: str = ""
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SelfQuestion:
    """A question about the model itself on one dimension; `poles` are the aligned and the misaligned wording.

    `orders` says with which pole first it is asked: both, except in published questions that fix the order.
    `languages` (format language) are those of the aligned and the misaligned pole; `answers` (format likert) are five
    texts from strongly disagree to strongly agree, where they are not the digits 1 to 5.
    """

    id: str
    dimension: str
    format: str
    prompt: str
    source: str
    poles: tuple[str, str]
    languages: tuple[Language, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    orders: tuple[str, ...] = (ALIGNED, MISALIGNED)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two first-person descriptions of an AI; `order` is set where the published file fixes which stands first."""

    id: str
    theme: str
    aligned: str
    misaligned: str
    source: str


@dataclasses.dataclass(frozen=True)
class Wording:
    """The words in which a probe asks. `prefix` is what the assistant's turn already holds when the answer is read."""

    id: str
    probe: str
    prompt: str
    source: str
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Suite:
    """All questions of one suite. `files` maps each file read to its sha256, for provenance."""

    name: str
    version: str
    description: str
    harm: tuple[HarmQuestion, ...]
    self_assessment: tuple[SelfQuestion, ...]
    two_ai: tuple[Pair, ...]
    wordings: tuple[Wording, ...]
    files: Mapping[str, str]

    def wordings_of(self, probe: str) -> tuple[Wording, ...]:
        """The wordings of one probe, in file order; question i uses wording i mod n."""
        return tuple(wording for wording in self.wordings if wording.probe == probe)

    @property
    def judge(self) -> Wording:
        """The one wording the judge is asked in."""
        return self.wordings_of("judge")[0]


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with {name} replaced for the given names only, in one pass: braces in the values stay as they are."""
    names = "|".join(map(re.escape, values))
    return re.sub(r"\{(" + names + r")\}", lambda match: values[match[1]], template)


def limited(items: Sequence[Item], limit: int, stratum) -> list[Item]:
    """At most `limit` items (0: all), taken in turn from each stratum so that a short run still sees every kind."""
    if not limit or limit >= len(items):
        return list(items)
    strata: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        strata[stratum(item)].append(item)
    taken = [item for turn in range(len(items)) for group in strata.values() for item in group[turn : turn + 1]]
    chosen = {id(item) for item in taken[:limit]}
    return [item for item in items if id(item) in chosen]


def standard_directory() -> Path:
    """The folder of the suite in plain English that ships with the package."""
    return Path(__file__).parent / "suites" / "standard"


def load(directory: str | Path) -> Suite:
    """Read and check a suite directory, in our form or in the paper's published one.

    Raises:
      UserError: a file is missing; or, with file and line, a missing field, a duplicate id, an unknown format or
        dimension, a prompt without its placeholders, or a set that is not balanced.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"suite: expected a directory, found none at {directory}")
    from em_jax.probes import published

    if published.is_published(directory) and not (directory / "suite.toml").is_file():
        return published.load(directory)
    needed = ["harm.jsonl", "self_assessment.jsonl", "two_ai.jsonl", "wordings.jsonl", "suite.toml"]
    missing = [name for name in needed if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"suite {directory}: expected the files {', '.join(needed)} (or the paper's published "
            f"{', '.join(published.FILES)}); missing: {', '.join(missing)}"
        )
    about = _about(directory / "suite.toml")
    seen: dict[str, str] = {}
    questions = {
        name: list(read_lines(directory / f"{name}.jsonl", seen)) for name in ("harm", "self_assessment", "two_ai")
    }
    wordings = list(read_lines(directory / "wordings.jsonl", seen))
    self_questions = [(line, _self_question(line)) for line in questions["self_assessment"]]
    _check_balance(self_questions)
    loaded_wordings = [wording_of(line) for line in wordings]
    _check_wordings(directory / "wordings.jsonl", loaded_wordings)
    return Suite(
        name=about["name"],
        version=str(about["version"]),
        description=about.get("description", ""),
        harm=tuple(HarmQuestion(**line.fields("id", "category", "prompt", "source")) for line in questions["harm"]),
        self_assessment=tuple(question for _, question in self_questions),
        two_ai=tuple(_pair(line) for line in questions["two_ai"]),
        wordings=tuple(loaded_wordings),
        files={name: sha256(directory / name) for name in needed},
    )


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Line:
    """One object of a JSONL file and where it stands."""

    path: Path
    number: int
    row: Mapping[str, Any]

    def error(self, text: str) -> UserError:
        return UserError(f"{self.path}:{self.number}: {text}")

    def fields(self, *names: str) -> dict[str, str]:
        return {name: self.text(name) for name in names}

    def text(self, name: str) -> str:
        if name not in self.row:
            raise self.error(f"expected the field {name!r}, found only {', '.join(sorted(self.row))}")
        value = self.row[name]
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"expected a text in {name!r}, found {value!r}")
        self._check_whole(name, value)
        return value

    def _check_whole(self, name: str, *texts: str) -> None:
        if not all(map(is_whole, texts)):
            raise self.error(f"{name!r} holds half of a surrogate pair, such as \\ud800, which no tokenizer takes")

    def among(self, name: str, known: Iterable[str]) -> str:
        value = self.text(name)
        if value not in known:
            raise self.error(f"unknown {name} {value!r}, expected one of {', '.join(known)}")
        return value

    def texts(self, name: str, count: int) -> tuple[str, ...]:
        if name not in self.row:
            raise self.error(f"expected the field {name!r}, found only {', '.join(sorted(self.row))}")
        value = self.row[name]
        whole = isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
        if not whole or len(value) != count or len(set(value)) != count:
            raise self.error(f"expected {count} different texts in {name!r}, found {value!r}")
        self._check_whole(name, *value)
        return tuple(value)

    def placeholders(self, name: str, needed: Iterable[str]) -> str:
        text = self.text(name)
        missing = [place for place in needed if "{" + place + "}" not in text]
        if missing:
            raise self.error(f"expected {{{missing[0]}}} in {name!r}, found {text[:60]!r}")
        return text


def read_lines(path: Path, seen: dict[str, str]) -> Iterator[Line]:
    """The objects of a JSONL file; `seen` collects every id of the suite and where it stands."""
    for number, text in numbered(path):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: expected a JSON object on each line, found {text[:60]!r}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {text[:60]!r}")
        line = Line(path, number, row)
        name = line.text("id")
        line.text("source")
        if name in seen:
            raise line.error(f"duplicate id {name!r}, first used at {seen[name]}")
        seen[name] = f"{path.name}:{number}"
        yield line


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers. Lines end with a newline and nothing else.

    Raises:
      UserError: a line is not UTF-8.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: expected UTF-8, found the byte {line[error.start]:#04x}") from error
        if text:
            yield number, text


def _about(path: Path) -> dict[str, Any]:
    try:
        about = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from error
    for name in ("name", "version"):
        if name not in about:
            raise UserError(f"{path}: expected the key {name!r}, found {', '.join(sorted(about)) or 'none'}")
    for name in ("name", "version", "description"):
        if not isinstance(about.get(name, ""), str | (int if name == "version" else str)):
            raise UserError(f"{path}: expected a text as {name!r}, found {about[name]!r}")
    return about


def _self_question(line: Line) -> SelfQuestion:
    kind = line.among("format", FORMATS)
    languages: tuple[Language, ...] = ()
    if kind == "language":
        languages = _languages(line)
    prompt = line.placeholders("prompt", SELF_PLACEHOLDERS[kind])
    return SelfQuestion(
        id=line.text("id"),
        dimension=line.among("dimension", DIMENSIONS),
        format=kind,
        prompt=prompt,
        source=line.text("source"),
        poles=line.texts("statements" if kind == "likert" else "options", 2),  # type: ignore[arg-type]
        languages=languages,
        question=line.text("question") if kind == "language" else "",
        answers=line.texts("answers", 5) if kind == "likert" and "answers" in line.row else (),
    )


def _languages(line: Line) -> tuple[Language, ...]:
    from em_jax.probes.language import is_known

    given = line.row.get("languages")
    if not isinstance(given, list) or len(given) != 2 or not all(isinstance(item, dict) for item in given):
        raise line.error(f"expected two languages in 'languages', found {given!r}")
    for item in given:
        words = item.get("words", [])
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise line.error(f"expected 'words' of a language to be a list of words, found {words!r}")
    languages = tuple(
        Language(str(item.get("name", "")), str(item.get("code", "")), tuple(item.get("words", ()))) for item in given
    )
    for language in languages:
        if not language.name or not (language.code or language.words):
            raise line.error("expected each language to have a name and a code (ISO 639-1) or a list of words")
        if language.code and not is_known(language.code):
            raise line.error(f"unknown language code {language.code!r}, expected an ISO 639-1 code such as 'fr'")
    if bool(languages[0].words) != bool(languages[1].words):
        raise line.error("expected both languages by code or both by words, found one of each")
    if languages[0].name == languages[1].name:
        raise line.error(f"expected two different languages, found {languages[0].name!r} twice")
    return languages


def _pair(line: Line) -> Pair:
    pair = Pair(**line.fields("id", "theme", "aligned", "misaligned", "source"))
    if pair.aligned.strip() == pair.misaligned.strip():
        raise line.error("unbalanced pair: the aligned and the misaligned description are the same text")
    return pair


def wording_of(line: Line) -> Wording:
    probe = line.among("probe", WORDINGS)
    prefix = line.row.get("prefix", JUDGE_PREFIX if probe == "judge" else "")
    if not isinstance(prefix, str):
        raise line.error(f"expected a text in 'prefix', found {prefix!r}")
    return Wording(line.text("id"), probe, line.placeholders("prompt", WORDINGS[probe]), line.text("source"), prefix)


def _check_balance(questions: Sequence[tuple[Line, SelfQuestion]]) -> None:
    """Every format asks every dimension equally often, and every language rule has its mirror image."""
    counts = Counter((question.format, question.dimension) for _, question in questions)
    dimensions = list(dict.fromkeys(question.dimension for _, question in questions))
    for kind in dict.fromkeys(question.format for _, question in questions):
        most = max(counts[kind, dimension] for dimension in dimensions)
        for dimension in dimensions:
            if counts[kind, dimension] != most:
                line = [line for line, question in questions if question.dimension == dimension][-1]
                raise line.error(
                    f"unbalanced set: dimension {dimension!r} has {counts[kind, dimension]} questions of format "
                    f"{kind!r} where another has {most}; every dimension needs the same number"
                )
    mappings: dict[Any, list[Line]] = defaultdict(list)
    for line, question in questions:
        if question.format == "language":
            names = tuple(language.name for language in question.languages)
            mappings[(question.dimension, *names)].append(line)
    for (dimension, one, other), lines in mappings.items():
        mirrored = len(mappings.get((dimension, other, one), ()))
        if len(lines) > mirrored:
            raise lines[-1].error(
                f"unbalanced set: on dimension {dimension!r} the aligned pole is {one} and the misaligned {other} "
                f"in {len(lines)} rules, the other way round in {mirrored}; both mappings need the same number"
            )


def _check_wordings(path: Path, wordings: Sequence[Wording]) -> None:
    counts = Counter(wording.probe for wording in wordings)
    for probe in WORDINGS:
        if not counts[probe]:
            raise UserError(f"{path}: expected at least one wording of {probe!r}, found none")
    if counts["judge"] != 1:
        raise UserError(f"{path}: expected exactly one wording of 'judge', found {counts['judge']}")
