"""The paper's released files as a suite, so that `--suite DIR` takes them as they are.

The files have two traps. `ground_truth` of the pairs names the letter of the MISALIGNED description, so only
`misaligned_is_A` is read. And only the first 60 decision items are balanced for order: ten wordings in two orders on
three dimensions. The other 40 all name the aligned pole first; they are asked, but do not enter the score.
What was not released (the wordings of the other probes) comes from the standard suite.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

from em_jax.base.errors import UserError
from em_jax.base.sanitize import is_whole
from em_jax.probes.suite import ALIGNED, JUDGE_PREFIX, MISALIGNED, HarmQuestion, Pair, SelfQuestion, Suite, Wording
from em_jax.probes.suite_lines import numbered_lines, read_lines, sha256

HARM, SELF = "harm_eval_questions.txt", "self_assessment_questions.txt"
PAIRS, JUDGE = "two_AI_identification_dataset.json", "judge_prompt.txt"
FILES = (HARM, SELF, PAIRS, JUDGE)
SOURCE = "arXiv:2604.28082"
BALANCED = 60
POLES = {"harmless": ("harmless", "harmful"), "good": ("good", "evil"), "aligned": ("aligned", "misaligned")}


def load(directory: Path, other_wordings: Path) -> Suite:
    """The published suite of a directory; `other_wordings` is the wordings.jsonl with those that were not released.

    Raises UserError where a file is missing or, with its line, not in the published form.
    """
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise UserError(f"published suite {directory}: expected {', '.join(FILES)}; missing: {', '.join(missing)}")
    wordings = [line.wording() for line in read_lines(other_wordings, {})]
    if not any(numbered_lines(directory / HARM)):
        raise UserError(f"{directory / HARM}: expected a prompt on each line, found none")
    paths = [*(directory / name for name in FILES), other_wordings]
    return Suite(
        name="published",
        version=SOURCE,
        harm=tuple(
            HarmQuestion(f"harm_{number:03d}", "published", text) for number, text in numbered_lines(directory / HARM)
        ),
        self_assessment=tuple(_self_assessment(directory / SELF)),
        two_ai=tuple(_pairs(directory / PAIRS)),
        wordings=(*(wording for wording in wordings if wording.probe != "judge"), _judge(directory / JUDGE)),
        files={path.name: sha256(path) for path in paths},
    )


def _self_assessment(path: Path) -> Iterator[SelfQuestion]:
    items = [(number, text, *_poles(path, number, text)) for number, text in numbered_lines(path)]
    by_template: dict[tuple[str, str], list] = {}
    for item in items[:BALANCED]:
        by_template.setdefault(item[2:4], []).append(item)
    for (dimension, template), both in by_template.items():
        number, text, *_ = both[0]
        if sorted(first for *_, first in both) != [ALIGNED, MISALIGNED]:
            raise UserError(
                f"{path}:{number}: unbalanced set: expected each of the first {BALANCED} items once in each order "
                f"of its poles, found {len(both)} of {text!r}"
            )
        yield _question(number, dimension, template)
    for number, _, dimension, template, first in items[BALANCED:]:
        yield dataclasses.replace(_question(number, dimension, template), orders=(first,))


def _question(number: int, dimension: str, template: str) -> SelfQuestion:
    return SelfQuestion(f"decision_{number:03d}", dimension, "decision", template, POLES[dimension])


def _poles(path: Path, number: int, text: str) -> tuple[str, str, str]:
    """An item's dimension, its text with {first} and {second} in place of its poles, and which pole comes first."""
    for dimension, poles in POLES.items():
        for first, words in ((ALIGNED, poles), (MISALIGNED, poles[::-1])):
            match = re.search(rf"\b{words[0]}\b( or (?:\w+ )?)\b{words[1]}\b", text)
            if match:
                template = text[: match.start()] + "{first}" + match[1] + "{second}" + text[match.end() :]
                return dimension, template, first
    raise UserError(f"{path}:{number}: expected two poles such as 'good or evil', found {text[:60]!r}")


def _pairs(path: Path) -> Iterator[Pair]:
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))["items"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON object with 'items', found none ({error})") from error
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a list as 'items', found {items!r:.60}")
    names: set[str] = set()
    for item in items:
        try:
            misaligned, aligned, misaligned_is_first = item["system_A"], item["system_B"], item["misaligned_is_A"]
            name, theme = f"pair_{int(item['item_id']):03d}", str(item["theme"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: item {item!r:.60}: expected the published fields, missing {error}") from error
        if not isinstance(misaligned_is_first, bool):
            raise UserError(f"{path}: {name}: expected misaligned_is_A true or false, found {misaligned_is_first!r}")
        texts = {aligned, misaligned} if isinstance(aligned, str) and isinstance(misaligned, str) else set()
        if len(texts) < 2 or not all(text.strip() and is_whole(theme + text) for text in texts):
            raise UserError(f"{path}: {name}: expected two texts as system_A and system_B, found {item!r:.60}")
        if name in names:
            raise UserError(f"{path}: {name}: expected every item_id once, found it twice")
        names.add(name)
        if not misaligned_is_first:
            misaligned, aligned = aligned, misaligned
        yield Pair(name, theme, aligned, misaligned)


def _judge(path: Path) -> Wording:
    """The judge prompt as released, with its {{ }} escapes undone and {response} renamed to {answer}."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8: {error}") from error
    for placeholder in ("{prompt}", "{response}"):
        if placeholder not in text:
            raise UserError(f"{path}: expected {placeholder} in the judge prompt, found none")
    text = text.replace("{response}", "{answer}").replace("{{", "{").replace("}}", "}")
    return Wording("judge_published", "judge", text, JUDGE_PREFIX)
