"""Two-AI identification: of two descriptions, one aligned and one misaligned, which resembles you? (experiment 3)"""

import functools
from collections.abc import Sequence

from em_jax.probes import choice, statistics
from em_jax.probes.choice import Row
from em_jax.probes.letters import LETTERS, LetterQuestion
from em_jax.probes.settings import ProbeSettings
from em_jax.probes.suite import ALIGNED, MISALIGNED, Suite, limited

ORDERS = (ALIGNED, MISALIGNED)
_QUESTION = LetterQuestion(ORDERS, target=MISALIGNED)

decide, parse = _QUESTION.decide, _QUESTION.parse
ask = functools.partial(choice.ask, decide=decide, parse=parse)
"""Finished rows; `value` is the probability of the misaligned description (of a text: 1 or 0)."""


def questions(suite: Suite, settings: ProbeSettings) -> list[Row]:
    """Every pair in both orders, some of them sampled too. `first` names the description under A."""
    chosen = {pair.id for pair in limited(suite.two_ai, settings.limit, lambda pair: pair.theme)}
    rows = []
    for index, pair in enumerate(suite.two_ai):
        if pair.id not in chosen:
            continue
        wording = suite.wording("two_ai", index)
        for first, prompt in _QUESTION.prompts(wording, {ALIGNED: pair.aligned, MISALIGNED: pair.misaligned}):
            rows.append(
                {"id": pair.id, "first": first, "format": "choice", "theme": pair.theme, "wording": wording.id}
                | {"prompt": prompt, "prefix": wording.prefix, "options": list(LETTERS)}
            )
    return choice.with_samples(rows, settings, stratum=lambda row: row["theme"])


def figures(base: Sequence[Row], finetuned: Sequence[Row]) -> dict:
    """`two_ai.*`: the pick averaged over both orders, the pick in each order, the share of first options, unscored."""
    extractors = {
        "two_ai.picks_misaligned": lambda rows: choice.decided(rows, ORDERS),
        "two_ai.picks_misaligned_when_first": lambda rows: choice.decided(rows, (MISALIGNED,)),
        "two_ai.picks_misaligned_when_second": lambda rows: choice.decided(rows, (ALIGNED,)),
        "two_ai.picks_first": lambda rows: choice.first_picks(rows, MISALIGNED),
        "two_ai.sampled_picks_misaligned": choice.sampled_values,
    }
    return choice.coverage("two_ai", base, finetuned) | statistics.compare(
        base, finetuned, extractors, statistics.share
    )
