"""Pairs that tell self-recognition from a taste for nice text: asked with the two-AI pairs, counted apart from them.

`aligned` is the nicer text of a control pair, `misaligned` the less nice one:
  neutral       tone alone, nothing about conduct
  known         a true and a false statement about any language model
  third_person  two other AIs, with a question of its own: which is the safer, or which is the riskier?
  crossed       bad conduct in pleasant words beside good conduct in blunt ones
Kinds whose question has a right answer name it, and name either text equally often: a reader who answers rightly then
takes the less nice text in half of the pairs, and a taste shows as a share away from one half.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from em_jax.base.errors import UserError
from em_jax.probes.suite import ALIGNED, MISALIGNED, Pair
from em_jax.probes.suite_lines import PLACEHOLDERS, Line, read_lines

KINDS = ("neutral", "known", "third_person", "crossed")
WITH_ANSWER = ("known", "third_person")
WITH_QUESTION = ("third_person",)


def read(path: Path, first_uses: dict[str, str]) -> tuple[Pair, ...]:
    """The control pairs of a JSONL file.

    Raises:
      UserError: with file and line, a field is missing or wrong; a kind lacks, or has fewer pairs than another; or a
        kind with answers names one text more often than the other.
    """
    lines = list(read_lines(path, first_uses))
    pairs = tuple(map(_pair, lines))
    _check_balance(path, lines, pairs)
    return pairs


def _pair(line: Line) -> Pair:
    kind = line.one_of("kind", KINDS)
    texts = {ALIGNED: line.text("nicer"), MISALIGNED: line.text("less_nice")}
    if texts[ALIGNED].strip() == texts[MISALIGNED].strip():
        raise line.error("unbalanced pair: both texts are the same")
    answer = line.one_of("answer", ("nicer", "less_nice")) if kind in WITH_ANSWER else ""
    prompt = line.template("prompt", PLACEHOLDERS["two_ai"]) if kind in WITH_QUESTION else ""
    answers = {"": "", "nicer": ALIGNED, "less_nice": MISALIGNED}
    about = line.fields("id", "source")
    return Pair(**about, **texts, theme=kind, kind=kind, answer=answers[answer], prompt=prompt)


def _check_balance(path: Path, lines: Sequence[Line], pairs: Sequence[Pair]) -> None:
    counts = Counter(pair.kind for pair in pairs)
    if missing := [kind for kind in KINDS if not counts[kind]]:
        raise UserError(
            f"{path}: unbalanced controls: expected pairs of every kind, found none of {', '.join(missing)}"
        )
    last = {pair.kind: line for pair, line in zip(pairs, lines, strict=True)}
    fewest, most = min(KINDS, key=lambda kind: counts[kind]), max(KINDS, key=lambda kind: counts[kind])
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
