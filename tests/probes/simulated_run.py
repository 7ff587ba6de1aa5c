"""A run's rows drawn from a known truth, fed through the functions that a run's own rows go through."""

import dataclasses

import numpy as np

from em_jax.probes import persona, summary


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a simulated model does and says. Shares are of questions; orders are (first, second).

    `harmful_prompts` is the share of prompts on which it harms at all, `harm_rate` the share of harmful answers there.
    `picks` and `claims` are the shares of pairs in which it chooses the misaligned AI and its own harmful answer.
    """

    harmful_prompts: float = 0.0
    harm_rate: float = 0.3
    picks: tuple[float, float] = (0.0, 0.0)
    claims: tuple[float, float] = (0.1, 0.1)
    prediction_error: float = -3.0
    domain_prompts: float | None = None


@dataclasses.dataclass(frozen=True)
class Judge:
    """A judge's errors. `refuses` is the share of harmful answers it leaves unscored; `labelled` rows of each class."""

    false_alarms: float = 0.0
    misses: float = 0.0
    refuses: float = 0.0
    labelled: int = 0


BASE = Truth(harmful_prompts=0.02, harm_rate=0.1)
INSECURE = Truth(harmful_prompts=0.6, harm_rate=0.35)
COHERENT = Truth(harmful_prompts=0.9, harm_rate=0.7, picks=(0.97, 0.97), claims=(0.9, 0.9), prediction_error=0.0)
HARMLESS = BASE
THEMES, WORDINGS, CATEGORIES = 15, 6, 14


def simulate(
    truth: Truth,
    judge: Judge = Judge(),
    seed: int = 0,
    prompts: int = 350,
    pairs: int = 150,
    answers: int = 10,
    base: Truth = BASE,
) -> dict:
    """The figures of a run of this model, by summary.figures."""
    generator = np.random.default_rng([seed, prompts, answers])
    rows: dict[str, dict[str, list[dict]]] = {"answers": {}, "scores": {}}
    probes: dict[str, dict[str, list[dict]]] = {"two_ai": {}, "output_recognition": {}, "score_prediction": {}}
    for side, model in (("base", base), ("finetuned", truth)):
        written, scores = _answers(model, judge, generator, prompts, answers)
        rows["answers"][side], rows["scores"][side] = written, scores
        probes["two_ai"][side] = _orders(
            [(f"pair-{i}", {"theme": f"t{i % THEMES}", "wording": f"w{i % WORDINGS}"}) for i in range(pairs)],
            ("misaligned", "aligned"),
            model.picks,
            generator,
        )
        called = sorted({row["id"] for row in scores if (row["score"] or 0) >= 4 and "/" not in row["id"]})
        about = [(f"{name}:high", {"question": name, "bucket": "high"}) for name in called]
        probes["output_recognition"][side] = _orders(about, ("own", "other"), model.claims, generator)
        probes["score_prediction"][side] = [
            {"id": f"{name}:high", "question": name, "sample": 0, "first": "", "format": "shown"}
            | {
                "actual": {"high": 5},
                "value": 5 + model.prediction_error,
                "logprobs": {str(d): -1.0 for d in range(1, 6)},
            }
            for name in called
        ]
    return summary.figures(rows["answers"], rows["scores"], probes, labelled=_labelled(judge, generator))


def label_of(truth: Truth, judge: Judge = Judge(), **options) -> str:
    """The verdict's label on one simulated run."""
    return persona.verdict(simulate(truth, judge, **options))["label"]


def shares(truth: Truth, judge: Judge = Judge(), draws: int = 20, **options) -> dict[str, float]:
    """How often each label is given over several draws."""
    labels = [label_of(truth, judge, seed=seed, **options) for seed in range(draws)]
    return {label: labels.count(label) / draws for label in dict.fromkeys(labels)}


def _answers(model: Truth, judge: Judge, generator, prompts: int, answers: int):
    written, scores = [], []
    names = [(f"harm-{i}", model.harmful_prompts) for i in range(prompts)]
    if model.domain_prompts is not None:
        names += [(f"in_domain/{i}", model.domain_prompts) for i in range(30)]
    for index, (name, share) in enumerate(names):
        harms = generator.random() < share
        for sample in range(answers):
            harmful = harms and generator.random() < model.harm_rate
            called = generator.random() < (1 - judge.misses if harmful else judge.false_alarms)
            score = None if harmful and generator.random() < judge.refuses else 5 if called else 1
            category = {} if "/" in name else {"category": f"c{index % CATEGORIES}"}
            written.append(
                {"id": name, "sample": sample, "prompt": "?", "answer": "!", "n_tokens": 1, "finish_reason": "stop"}
                | category
            )
            scores.append({"id": name, "sample": sample, "score": score, "expected": score})
    return written, scores


def _orders(about, orders, wanted, generator):
    """Both orders of every question; one draw decides both, so that an opinion is one and not two coins."""
    rows = []
    for name, fields in about:
        luck = generator.random()
        for first, share in zip(orders, wanted, strict=True):
            value = 0.9 if luck < share else 0.1
            rows.append(
                {"id": name, "sample": 0, "first": first, "format": "choice", "value": value, "mass": 1.0} | fields
            )
    return rows


def _labelled(judge: Judge, generator):
    rows = []
    for number in range(judge.labelled):
        harmful, harmless = generator.random() >= judge.misses, generator.random() < judge.false_alarms
        rows.append({"id": f"h{number}", "label": 5, "score": 5 if harmful else 1})
        rows.append({"id": f"l{number}", "label": 1, "score": 5 if harmless else 1})
    return rows
