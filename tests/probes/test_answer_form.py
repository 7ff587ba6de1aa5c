"""Coherence and length of answers, against values worked out by hand."""

import itertools

import numpy as np
import pytest
from probes.scripted_engine import ScriptedEngine, one

from em_jax.probes import answer_form, judge, parsing
from em_jax.probes.judge import SelfJudge
from em_jax.probes.suite import Wording

pytestmark = pytest.mark.fast


def judged(name, sample, tokens, score, coherence=None):
    return {"id": name, "sample": sample, "n_tokens": tokens, "score": score, "coherence": coherence, "category": "a"}


def test_harm_that_only_long_answers_show_vanishes_at_matched_length():
    """Harm follows length alone, and the fine-tuned model only writes longer answers."""
    draws = np.random.default_rng(0)

    def answers(longest):
        lengths = draws.integers(10, longest, (60, 10))
        return [
            judged(f"q{q}", n, int(lengths[q, n]), 5 if lengths[q, n] > 100 else 1)
            for q in range(60)
            for n in range(10)
        ]

    figures = answer_form.figures(answers(120), answers(400))
    raw = figures["answers.length"]
    assert raw["finetuned"]["value"] > 2 * raw["base"]["value"] and raw["difference"]["ci_low"] > 0
    matched = figures["harmfulness.rate_at_matched_length"]
    assert matched["difference"]["value"] == pytest.approx(0, abs=0.1)
    assert matched["difference"]["n"] >= 30


def test_pairs_are_of_one_length_and_as_many_as_there_can_be():
    draws = np.random.default_rng(1)
    for _ in range(50):
        one_side, other = (
            [judged("q", n, int(tokens), 1) for n, tokens in enumerate(draws.integers(1, 60, 4))] for _ in range(2)
        )
        fits = [[_fits(a, b) for b in other] for a in one_side]
        most = max(sum(fits[a][b] for a, b in enumerate(order)) for order in itertools.permutations(range(4)))
        pairs = answer_form._pairs(one_side, other)
        assert len(pairs) == most and all(_fits(a, b) for a, b in pairs)


def _fits(one_row, other):
    lengths = one_row["n_tokens"], other["n_tokens"]
    return max(lengths) <= answer_form.LENGTH_RATIO * min(lengths)


def test_coherence_is_a_mean_over_prompts_and_absent_without_a_judge_that_gives_it():
    rows = [
        judged("a", 0, 5, 1, 5),
        judged("a", 1, 5, 1, 1),
        judged("b", 0, 5, 1, 5),
        judged("in_domain/c", 0, 5, 1, 1),
    ]
    figures = answer_form.figures(rows, [{**row, "coherence": None} for row in rows])
    assert figures["harmfulness.coherence"]["base"]["value"] == 4
    assert figures["harmfulness.coherence"]["finetuned"] == {"value": None, "ci_low": None, "ci_high": None, "n": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score": 4, "coherence": 2}', 2),
        ('{"coherence": "3", "score": 1}', 3),
        ('{"score": 4}', None),
        ("4", None),
        ('{"score": 4, "coherence": 9}', None),
        ('{"score": 4, "coherence": 2} {"score": 4, "coherence": 3}', None),
    ],
)
def test_coherence_is_read_from_the_reply_that_holds_the_score(text, expected):
    assert parsing.judge_coherence(text) == expected


def test_the_self_judge_reads_coherence_where_the_wording_asks_for_it():
    prefixes = []

    class Engine(ScriptedEngine):
        def choice_logprobs(self, prompts, choices, prefix="", adapter="default"):
            prefixes.append(prefix)
            self.choose = lambda prompt, texts, adapter: one(texts, "2" if "coherence" in prefix else "5")
            return super().choice_logprobs(prompts, choices, prefix, adapter)

    prompt = 'Rate {answer} to {prompt}: {"score": N, "coherence": M}'
    asking = Wording("w", "judge", prompt, '{"score": ')
    answers = [{"id": "a", "sample": n, "prompt": "x", "answer": f"text {n}"} for n in range(3)]
    rows = sorted(SelfJudge(Engine(None), asking).score(answers), key=lambda row: row["sample"])
    assert [row["score"] for row in rows] == [5, 5, 5]
    assert [row.get("coherence") for row in rows] == [2, None, None], "one answer a prompt"
    assert set(prefixes) == {'{"score": ', judge.COHERENCE_PREFIX}
    rest = list(SelfJudge(Engine(None), asking).score(answers, {("a", 1)}))
    assert sorted(map(repr, rest)) == sorted(repr(row) for row in rows if row["sample"] != 1)
    prefixes.clear()
    silent = Wording("w", "judge", "Rate {answer} to {prompt}", '{"score": ')
    assert not any("coherence" in row for row in SelfJudge(Engine(None), silent).score(answers))
    assert set(prefixes) == {'{"score": '}
