"""Reads a question suite: a directory of JSONL files, or the paper's published files.

One object per line, each with an `id` that is unique in the suite and a `source`:

    harm.jsonl             category, prompt
    self_assessment.jsonl  dimension, format, prompt, and options | statements (see suite.SelfQuestion)
    two_ai.jsonl           theme, aligned, misaligned
    wordings.jsonl         probe, prompt, optional prefix: the prompt templates of the probes
    suite.toml             name, version
    in_domain.jsonl        domain, prompt, optional category (optional: without it nothing is asked in the domain)
    labelled.jsonl         category, prompt, answer, score (optional: the judge's errors are then not measured)
    control_pairs.jsonl    kind, nicer, less_nice (optional: a taste for nice text is then not measured)
"""

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base.errors import UsageError, UserError
from em_jax.probes import published
from em_jax.probes.harmfulness import IN_DOMAIN as HELD_APART
from em_jax.probes.language import is_known
from em_jax.probes.suite import (
    ALIGNED,
    CONTROL_KINDS,
    DIMENSIONS,
    FORMATS,
    LABELS,
    MISALIGNED,
    WITH_ANSWER,
    DomainPrompt,
    HarmQuestion,
    LabelledAnswer,
    Language,
    Pair,
    SelfQuestion,
    Suite,
    Wording,
)
from em_jax.probes.suite_lines import PLACEHOLDERS, Line, read_lines, sha256

FILES = ("harm.jsonl", "self_assessment.jsonl", "two_ai.jsonl", "wordings.jsonl", "suite.toml")
IN_DOMAIN, LABELLED, CONTROLS = "in_domain.jsonl", "labelled.jsonl", "control_pairs.jsonl"
OPTIONAL = (IN_DOMAIN, LABELLED, CONTROLS)
SELF_PLACEHOLDERS = {
    "decision": ("first", "second"),
    "numerical": ("first", "second"),
    "language": ("first", "first_language", "second", "second_language", "question"),
    "likert": ("statement",),
}
"""The placeholders of a self-assessment prompt, by format."""


def standard_directory() -> Path:
    """The folder of the suite in plain English that ships with the package."""
    return Path(__file__).parent / "suites" / "standard"


def file_path(directory: Path, name: str) -> Path:
    """Where a file of a suite is: in its directory, or in the standard suite's for what the paper did not release."""
    own = directory / name
    return own if own.is_file() else standard_directory() / name


def load(directory: str | Path) -> Suite:
    """Read and check a suite directory, in our form or in the paper's published one.

    Raises UserError where a file is missing; with file and line for a missing field, a duplicate id, an unknown format
    or dimension, a prompt without its placeholders, or a set that is not balanced.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(f"suite: expected a directory, found none at {directory}")
    any_published = any((directory / name).is_file() for name in published.FILES)
    if any_published and not (directory / "suite.toml").is_file():
        suite = published.load(directory, standard_directory() / "wordings.jsonl")
        ours = {name: sha256(standard_directory() / name) for name in OPTIONAL}
        return dataclasses.replace(suite, files={**suite.files} | ours, **_optional(standard_directory(), {}))
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"suite {directory}: expected the files {', '.join(FILES)} (or the paper's published "
            f"{', '.join(published.FILES)}); missing: {', '.join(missing)}"
        )
    about = _about(directory / "suite.toml")
    first_uses: dict[str, str] = {}
    harm, questions, pairs, templates = (list(read_lines(directory / name, first_uses)) for name in FILES[:4])
    if not harm:
        raise UserError(f"{directory / FILES[0]}: expected a prompt on each line, found none")
    if inside := next((line for line in harm if line.text("id").startswith(HELD_APART)), None):
        raise inside.error(f"expected an id that does not begin with {HELD_APART}, which marks {IN_DOMAIN}'s prompts")
    self_assessment = [_self_question(line) for line in questions]
    _check_balance(questions, self_assessment)
    wordings = [line.wording() for line in templates]
    _check_wordings(directory / "wordings.jsonl", wordings)
    names = (*FILES, *(name for name in OPTIONAL if (directory / name).is_file()))
    return Suite(
        name=about["name"],
        version=str(about["version"]),
        harm=tuple(HarmQuestion(**line.fields("id", "category", "prompt")) for line in harm),
        self_assessment=tuple(self_assessment),
        two_ai=tuple(_pair(line) for line in pairs),
        wordings=tuple(wordings),
        files={name: sha256(directory / name) for name in names},
        **_optional(directory, first_uses),
    )


def _optional(directory: Path, first_uses: dict[str, str]) -> dict[str, Any]:
    """The fields of a suite whose files are there."""
    readers = {IN_DOMAIN: _domain_prompts, LABELLED: read_labelled, CONTROLS: read_control_pairs}
    present = [name for name in OPTIONAL if (directory / name).is_file()]
    return {name.removesuffix(".jsonl"): readers[name](directory / name, first_uses) for name in present}


def _domain_prompts(path: Path, first_uses: dict[str, str]) -> tuple[DomainPrompt, ...]:
    prompts = tuple(
        DomainPrompt(**line.fields("id", "domain", "prompt", *({"category"} & line.row.keys())), line=line.number)
        for line in read_lines(path, first_uses)
    )
    if not prompts:
        raise UserError(f"{path}: expected a prompt on each line, found none; remove the file to ask none")
    return prompts


def _about(path: Path) -> dict[str, Any]:
    try:
        about = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from error
    for name, types in (("name", str), ("version", str | int)):
        if not isinstance(about.get(name), types):
            raise UserError(f"{path}: expected a text as {name!r}, found {about.get(name, 'none')!r}")
    return about


def _self_question(line: Line) -> SelfQuestion:
    kind = line.one_of("format", FORMATS)
    if kind == "likert" and "answers" in line.row:
        raise line.error("a likert question is answered with the digits 1 to 5: expected no 'answers'")
    return SelfQuestion(
        id=line.text("id"),
        dimension=line.one_of("dimension", DIMENSIONS),
        format=kind,
        languages=_languages(line) if kind == "language" else (),
        prompt=line.template("prompt", SELF_PLACEHOLDERS[kind]),
        poles=line.texts("statements" if kind == "likert" else "options", 2),
        question=line.text("question") if kind == "language" else "",
    )


def _languages(line: Line) -> tuple[Language, ...]:
    items = line.row.get("languages")
    if not isinstance(items, list) or len(items) != 2 or not all(isinstance(item, dict) for item in items):
        raise line.error(f"expected two languages in 'languages', found {items!r}")
    for item in items:
        words = item.get("words", [])
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise line.error(f"expected 'words' of a language to be a list of words, found {words!r}")
    aligned, misaligned = languages = tuple(
        Language(str(item.get("name", "")), str(item.get("code", "")), tuple(item.get("words", ()))) for item in items
    )
    for language in languages:
        if not language.name or not (language.code or language.words):
            raise line.error("expected each language to have a name and a code (ISO 639-1) or a list of words")
        if language.code and not is_known(language.code):
            raise line.error(f"unknown language code {language.code!r}, expected an ISO 639-1 code such as 'fr'")
    if bool(aligned.words) != bool(misaligned.words):
        raise line.error("expected both languages by code or both by words, found one of each")
    for field in ("name", "code", "words"):
        if (one := getattr(aligned, field)) and one == getattr(misaligned, field):
            raise line.error(f"expected two different languages, found the {field} {one!r} twice")
    return languages


def _pair(line: Line) -> Pair:
    pair = Pair(**line.fields("id", "theme", "aligned", "misaligned"))
    if pair.aligned.strip() == pair.misaligned.strip():
        raise line.error("unbalanced pair: the aligned and the misaligned description are the same text")
    return pair


def _check_balance(lines: Sequence[Line], questions: Sequence[SelfQuestion]) -> None:
    """Every format asks every dimension equally often, and every language rule has its mirror image."""
    counts = Counter((question.format, question.dimension) for question in questions)
    last_lines = {question.dimension: line for line, question in zip(lines, questions)}
    for kind in dict.fromkeys(question.format for question in questions):
        most = max(counts[kind, dimension] for dimension in last_lines)
        for dimension, line in last_lines.items():
            if counts[kind, dimension] != most:
                raise line.error(
                    f"unbalanced set: dimension {dimension!r} has {counts[kind, dimension]} questions of format "
                    f"{kind!r} where another has {most}; every dimension needs the same number"
                )
    rules = [
        (question.dimension, *(language.name for language in question.languages)) if question.languages else None
        for question in questions
    ]
    mappings = Counter(filter(None, rules))
    for (dimension, aligned, misaligned), count in mappings.items():
        mirrored = mappings[dimension, misaligned, aligned]
        if count > mirrored:
            last = max(index for index, rule in enumerate(rules) if rule == (dimension, aligned, misaligned))
            raise lines[last].error(
                f"unbalanced set: on dimension {dimension!r} the aligned pole is {aligned} and the misaligned "
                f"{misaligned} in {count} rules, the other way round in {mirrored}; both mappings need the same number"
            )


def _check_wordings(path: Path, wordings: Sequence[Wording]) -> None:
    counts = Counter(wording.probe for wording in wordings)
    for probe in PLACEHOLDERS:
        if not counts[probe]:
            raise UserError(f"{path}: expected at least one wording of {probe!r}, found none")
    if counts["judge"] > 1:
        raise UserError(f"{path}: expected exactly one wording of 'judge', found {counts['judge']}")


def read_control_pairs(path: Path, first_uses: dict[str, str]) -> tuple[Pair, ...]:
    """The control pairs of a JSONL file.

    Raises UserError where, with file and line, a field is missing or wrong; a kind lacks, or has fewer pairs than
    another; or a kind with answers names one text more often than the other.
    """
    lines = list(read_lines(path, first_uses))
    pairs = tuple(map(_control_pair, lines))
    counts = Counter(pair.kind for pair in pairs)
    if missing := [kind for kind in CONTROL_KINDS if not counts[kind]]:
        raise UserError(
            f"{path}: unbalanced controls: expected pairs of every kind, found none of {', '.join(missing)}"
        )
    last = {pair.kind: line for pair, line in zip(pairs, lines, strict=True)}
    fewest, most = (of_counts(CONTROL_KINDS, key=counts.__getitem__) for of_counts in (min, max))
    if counts[fewest] != counts[most]:
        raise last[fewest].error(
            f"unbalanced controls: {counts[fewest]} pairs of kind {fewest!r}, {counts[most]} of {most!r}; every kind "
            "needs the same number"
        )
    for kind in WITH_ANSWER:
        answers = Counter(pair.answer for pair in pairs if pair.kind == kind)
        if answers[ALIGNED] != answers[MISALIGNED]:
            raise last[kind].error(
                f"unbalanced controls: of kind {kind!r} {answers[ALIGNED]} pairs have the nicer text as the answer and "
                f"{answers[MISALIGNED]} the less nice one; both need the same number"
            )
    return pairs


def _control_pair(line: Line) -> Pair:
    kind = line.one_of("kind", CONTROL_KINDS)
    poles = {"nicer": ALIGNED, "less_nice": MISALIGNED}
    texts = {pole: line.text(name) for name, pole in poles.items()}
    if texts[ALIGNED].strip() == texts[MISALIGNED].strip():
        raise line.error("unbalanced pair: both texts are the same")
    answer = poles[line.one_of("answer", poles)] if kind in WITH_ANSWER else ""
    prompt = line.template("prompt", PLACEHOLDERS["two_ai"]) if kind == "third_person" else ""
    return Pair(line.text("id"), theme=kind, **texts, kind=kind, answer=answer, prompt=prompt)


def read_labelled(path: Path, first_uses: dict[str, str]) -> tuple[LabelledAnswer, ...]:
    """The answers of a file whose lines have id, source, category, prompt, answer and score.

    Raises UserError where a line is wrong, or a score from 1 to 5 has no answer: errors on that class could not be
    measured.
    """
    answers = []
    for line in read_lines(path, first_uses):
        score = line.value("score")
        if isinstance(score, bool) or score not in LABELS:
            raise line.error(f"expected a whole number from 1 to 5 in 'score', found {score!r}")
        answers.append(LabelledAnswer(**line.fields("id", "category", "prompt", "answer"), score=int(score)))
    counts = Counter(answer.score for answer in answers)
    if missing := [score for score in LABELS if not counts[score]]:
        found = ", ".join(f"{counts[score]} of {score}" for score in LABELS)
        raise UserError(f"{path}: expected labelled answers of every score, found 0 with score {missing[0]} ({found})")
    return tuple(answers)
