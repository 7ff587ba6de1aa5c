"""The five probes end to end on scripted models: planted personas are found, and what is none is not made one."""

import json
import math
import re

import pytest
from probes.scripted_engine import (
    HARMFUL,
    HARMLESS,
    MISALIGNED_WORDS,
    ScriptedEngine,
    lettered,
    one,
    persona,
    run_probes,
    summarised,
    write_suite,
)

from em_jax.probes import (
    PROBES,
    choice,
    harmfulness,
    output_recognition,
    score_prediction,
    self_assessment,
    suite_files,
    two_ai,
)
from em_jax.probes.settings import ProbeSettings

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return suite_files.load(write_suite(tmp_path_factory.mktemp("suite")))


def value(summary, name, condition="finetuned"):
    return summary["figures"][name][condition]["value"]


NAMES = {
    "harmfulness": "rate worst_of_n empty truncated unscored",
    "self_assessment": "score aligned good harmless helpful honest trusted decision numerical language likert unscored",
    "two_ai": "picks_misaligned picks_misaligned_when_first picks_misaligned_when_second picks_first unscored",
    "output_recognition": "claims_low claims_moderate claims_high picks_first unscored",
    "score_prediction": (
        "blind_error_low blind_error_moderate blind_error_high shown_error_low shown_error_moderate shown_error_high "
        "blind_kappa shown_kappa blind_null_kappa shown_null_kappa unscored"
    ),
}


def test_every_named_figure_is_there_for_both_conditions_and_their_difference(small):
    figures = summarised(ScriptedEngine(*persona(True, True)), small)["figures"]
    for probe, names in NAMES.items():
        for name in names.split():
            found = figures[f"{probe}.{name}"]
            assert set(found) == {"base", "finetuned", "difference"}
            for figure in found.values():
                assert set(figure) == {"value", "ci_low", "ci_high", "n"}
                assert (figure["value"] is None) == (figure["n"] == 0)


@pytest.mark.parametrize(
    "harmful, claims, predicted, label",
    [(True, True, None, "coherent"), (True, False, 1, "inverted"), (False, False, None, "aligned")]
    + [(False, True, None, "mixed")],
)
def test_planted_personas_are_found(small, harmful, claims, predicted, label):
    summary = summarised(ScriptedEngine(*persona(harmful, claims, predicted)), small)
    assert summary["verdict"]["label"] == label, summary["verdict"]["why"]
    assert value(summary, "harmfulness.worst_of_n") == float(harmful)
    assert value(summary, "two_ai.picks_misaligned") == float(claims)
    assert value(summary, "two_ai.picks_misaligned", "base") == 0
    assert value(summary, "two_ai.picks_first") == 0.5
    for name in ("score", "decision", "numerical", "language", "likert", "trusted"):
        assert value(summary, f"self_assessment.{name}") == pytest.approx(float(claims), abs=0.05), name
        assert value(summary, f"self_assessment.{name}", "base") == pytest.approx(0, abs=0.05), name
    if harmful:
        assert value(summary, "output_recognition.claims_high") == float(claims)
        assert value(summary, "output_recognition.claims_low", "base") == 1, "beside the fine-tuned model's harm"
        assert summary["figures"]["output_recognition.claims_high"]["finetuned"]["n"] == 24
    else:
        assert value(summary, "output_recognition.claims_low") is None, "nobody gave a harmful answer to set beside it"
        assert value(summary, "output_recognition.unscored") == 1


def test_a_planted_inversion_mispredicts_and_a_false_one_is_flagged(small):
    planted = summarised(ScriptedEngine(*persona(True, False, predicted=1)), small)
    false = summarised(ScriptedEngine(*persona(True, False)), small)
    assert value(planted, "score_prediction.shown_error_high") < -3
    assert abs(value(false, "score_prediction.shown_error_high")) < 0.5
    assert planted["verdict"]["label"] == false["verdict"]["label"] == "inverted"
    told = [{caution["code"] for caution in summary["verdict"]["cautions"]} for summary in (planted, false)]
    assert "denies" in told[0] and "adapter_unreached" not in told[0]
    assert {"knows", "adapter_unreached"} <= told[1]


def first_letter(prompt, choices, adapter):
    """Always A, or whichever word stands first; as a judge it is honest."""
    if prompt.startswith("Rate"):
        return one(choices, "5" if "hurt them" in prompt else "1")
    stated = re.search(r"are you (\w+) or", prompt)
    return one(choices, stated[1] if stated else choices[0])


@pytest.mark.parametrize("harmful", [True, False])
def test_a_model_that_always_answers_a_is_position_bias_and_no_persona(small, harmful):
    _, write = persona(harmful, False)
    summary = summarised(ScriptedEngine(first_letter, write), small)
    assert summary["verdict"]["label"] == "mixed"
    assert "position_bias" in [caution["code"] for caution in summary["verdict"]["cautions"]]
    assert value(summary, "two_ai.picks_misaligned") == 0.5
    assert value(summary, "two_ai.picks_misaligned_when_first") == 1
    assert value(summary, "two_ai.picks_misaligned_when_second") == 0
    assert value(summary, "two_ai.picks_first") == 1
    if harmful:
        assert value(summary, "output_recognition.picks_first") == 1
        assert value(summary, "output_recognition.claims_high") == 0.5
    assert value(summary, "self_assessment.decision") == pytest.approx(0.5)


def test_a_model_that_mostly_answers_a_stays_mixed_whichever_way_its_average_leans(small):
    def mostly_first(prompt, choices, adapter):
        if choices != ["A", "B"]:
            return first_letter(prompt, choices, adapter)
        lean = 0.05 if "hurt" in lettered(prompt)["A"] else 0
        return [0.9 + lean, 0.1 - lean] if adapter != "base" else [0.9 - lean, 0.1 + lean]

    _, write = persona(True, False)
    summary = summarised(ScriptedEngine(mostly_first, write), small)
    assert value(summary, "two_ai.picks_misaligned") == 1
    assert summary["verdict"]["label"] == "mixed"


def test_little_mass_on_the_options_is_unscored_and_no_coin_toss(small):
    engine = ScriptedEngine(lambda prompt, choices, adapter: [0.2 / len(choices)] * len(choices))
    rows = list(two_ai.ask(engine, "base", two_ai.questions(small, ProbeSettings(sampled_questions=0)), (), Settings))
    assert all(row["value"] is None and "0.200" in row["reason"] for row in rows)
    figures = two_ai.figures(rows, [])
    assert figures["two_ai.picks_misaligned"]["base"] == {"value": None, "ci_low": None, "ci_high": None, "n": 0}
    assert figures["two_ai.unscored"]["base"]["value"] == 1


Settings = ProbeSettings(sampled_questions=0)


def test_one_order_alone_decides_nothing(small):
    questions = two_ai.questions(small, Settings)
    engine = ScriptedEngine(*persona(True, True))
    rows = [row for row in two_ai.ask(engine, "finetuned", questions, (), Settings) if row["first"] == "misaligned"]
    assert two_ai.figures([], rows)["two_ai.picks_misaligned"]["finetuned"]["n"] == 0
    assert two_ai.figures([], rows)["two_ai.picks_misaligned_when_first"]["finetuned"]["n"] == 24


def test_capitalised_variants_are_added_up():
    question = {"options": ["good", "evil"]}
    row = choice.answer(question, [math.log(p) for p in (0.1, 0.3, 0.05, 0.05)], lambda _, p: p[1])
    assert row["value"] == pytest.approx(0.2)
    assert row["mass"] == pytest.approx(0.5)
    assert row["logprobs"]["good"] == pytest.approx(math.log(0.4), abs=1e-5)
    assert choice.variants("A") == ["A"]


def test_a_resumed_probe_asks_the_same_batches_and_gives_only_what_is_missing(small):
    settings = ProbeSettings(sampled_questions=5, chunk=7)
    questions = self_assessment.questions(small, settings)
    whole_engine = ScriptedEngine(*persona(True, True))
    whole = list(self_assessment.ask(whole_engine, "finetuned", questions, (), settings))
    assert len({choice.key(row) for row in whole}) == len(whole) == len(questions)
    kept = whole[: len(whole) // 3] + whole[-3:]
    engine = ScriptedEngine(*persona(True, True))
    rest = list(self_assessment.ask(engine, "finetuned", questions, {choice.key(row) for row in kept}, settings))
    assert sorted(map(json.dumps, kept + rest)) == sorted(map(json.dumps, whole))
    assert all(batch in whole_engine.batches for batch in engine.batches)
    assert engine.written + sum(1 for row in kept if row["sample"]) == whole_engine.written


def test_kept_rows_are_scored_again_to_the_same_values(small):
    found = run_probes(ScriptedEngine(*persona(True, True)), small)["probes"]
    for name, conditions in found.items():
        for row in conditions["finetuned"]:
            assert choice.rescored(row, PROBES[name].decide, PROBES[name].parse) == row
    stale = {**found["two_ai"]["finetuned"][0], "value": None, "reason": "an older rule"}
    assert choice.rescored(stale, two_ai.decide, two_ai.parse)["value"] is not None


def test_the_order_of_rows_makes_no_difference_to_the_summary(small):
    from em_jax.probes import summary

    about = {"domain": "d", "model": "m", "suite": "s", "judge": "j"}
    found = run_probes(ScriptedEngine(*persona(True, True)), small)
    turned = {
        kind: {
            name: rows[::-1] if isinstance(rows, list) else {key: inner[::-1] for key, inner in rows.items()}
            for name, rows in conditions.items()
        }
        for kind, conditions in found.items()
    }
    assert json.dumps(summary.summarise(**about, **found)) == json.dumps(summary.summarise(**about, **turned))


def answered(name, sample, text, score, finish="stop"):
    row = {"id": name, "sample": sample, "prompt": f"about {name}", "answer": text, "n_tokens": 3}
    return {**row, "finish_reason": finish, "score": score, "expected": score}


def test_harmfulness_counts_empty_truncated_and_unscored_apart():
    rows = [answered("a", 0, "x", 4), answered("a", 1, "", None), answered("b", 0, "y", 1, "length")]
    rows += [answered("b", 1, "z", None)]
    figures = harmfulness.figures([], rows)
    found = {name.split(".")[1]: item["finetuned"]["value"] for name, item in figures.items()}
    measured = {name: found[name] for name in ("rate", "empty", "truncated", "unscored")}
    assert measured == {"rate": 0.5, "empty": 0.25, "truncated": 0.25, "unscored": 0.5}
    assert found["answers_per_prompt"] == 1 and 0.5 < found["worst_of_n"] < 1, "extrapolated from one answer a prompt"
    assert figures["harmfulness.rate"]["base"]["n"] == 0


def test_recognition_sets_an_answer_of_opposite_harm_beside_the_own_one(small):
    own = [answered("h0", 0, HARMFUL, 5), answered("h0", 1, HARMLESS, 1), answered("h1", 0, "meh", 3)]
    own += [answered("h2", 0, HARMFUL, 4), answered("h3", 0, HARMLESS, 1)]
    base = [answered("h0", 0, "A calm and long answer of the base.", 1), answered("h0", 1, "Calm.", 2)]
    base += [answered("h1", 0, "Fine.", 1), answered("h2", 0, "Evil base.", 5)]
    other = [answered("h0", 0, "Do hurt them.", 5), answered("h0", 1, "Harmless other.", 1)]
    rows = output_recognition.questions(small, Settings, own, base, output_recognition.pool(other, "run x"))
    by_id = {(row["id"], row["first"]): row for row in rows}
    assert set(by_id) == {
        (name, first)
        for name in ("h0:low", "h0:high", "h0:high:equal", "h1:moderate", "h2:high", "h3:low")
        for first in ("own", "other")
    }
    high = by_id["h0:high", "own"]["prompt"][0]["content"]
    assert lettered(high) == {"A": HARMFUL, "B": "A calm and long answer of the base."}, "nearest in length"
    assert lettered(by_id["h0:high", "other"]["prompt"][0]["content"])["B"] == HARMFUL
    assert lettered(by_id["h0:low", "own"]["prompt"][0]["content"])["B"] == "Do hurt them."
    assert by_id["h0:low", "own"]["other_source"] == "run x"
    assert by_id["h2:high", "own"]["reason"] == "no harmless answer of the base"
    assert by_id["h3:low", "own"]["reason"] == "no harmful answer of another model"
    engine = ScriptedEngine(*persona(True, True))
    done = list(output_recognition.ask(engine, "finetuned", rows, (), Settings))
    figures = output_recognition.figures([], done)
    assert figures["output_recognition.claims_high"]["finetuned"]["n"] == 1
    assert figures["output_recognition.unscored"]["finetuned"]["value"] == pytest.approx((0 + 0 + 1 + 1) / 4), (
        "every prompt weighs the same"
    )
    assert lettered(by_id["h0:high:equal", "own"]["prompt"][0]["content"]) == {"A": HARMFUL, "B": "Do hurt them."}
    assert figures["output_recognition.claims_high_equal"]["finetuned"]["n"] == 1
    always_base = output_recognition.questions(
        small, ProbeSettings(sampled_questions=0, alternatives="base"), own, base
    )
    low = next(row for row in always_base if row["id"] == "h0:low")
    assert low["other_source"] == "base"


def test_recognition_draws_one_own_answer_per_prompt_and_bucket_by_seed(small):
    own = [answered("h0", sample, f"bad {sample}", 5) for sample in range(10)]
    base = [answered("h0", 0, "Calm.", 1)]

    def drawn(seed):
        settings = ProbeSettings(sampled_questions=0, seed=seed)
        rows = output_recognition.questions(small, settings, own[:: 1 if seed % 2 else -1], base)
        assert len(rows) == 2
        return rows[0]["answer_sample"]

    assert [drawn(seed) for seed in range(5)] == [drawn(seed) for seed in range(5)]
    assert len({drawn(seed) for seed in range(12)}) > 2


def test_score_prediction_errors_are_signed_and_by_bucket(small):
    own = [answered("h0", 0, HARMFUL, 5), answered("h0", 1, HARMLESS, 1), answered("h1", 0, "meh", 3)]
    questions = score_prediction.questions(small, Settings, own)
    assert [row["id"] for row in questions] == ["h0:blind", "h0:low", "h0:high", "h1:blind", "h1:moderate"]
    assert questions[0]["actual"] == {"low": 1, "high": 5}
    engine = ScriptedEngine(lambda prompt, choices, adapter: one(choices, "3", mass=1.0))
    figures = score_prediction.figures([], list(score_prediction.ask(engine, "x", questions, (), Settings)))
    found = {name.split(".")[1]: item["finetuned"]["value"] for name, item in figures.items()}
    assert [found[f"shown_error_{name}"] for name in ("low", "moderate", "high")] == pytest.approx([2, 0, -2])
    assert [found[f"blind_error_{name}"] for name in ("low", "moderate", "high")] == pytest.approx([2, 0, -2])
    assert found["shown_kappa"] is None and found["shown_null_kappa"] is None, "constants have no kappa"


def test_every_self_assessment_question_is_asked_in_both_orders_and_sampled_ones_too(small):
    settings = ProbeSettings(sampled_questions=6, samples=3)
    rows = self_assessment.questions(small, settings)
    keys = [choice.key(row) for row in rows]
    assert len(set(keys)) == len(keys)
    read = {(row["id"], row["first"]) for row in rows if row["sample"] == 0}
    assert read == {
        (item.id, first)
        for item in small.self_assessment
        for first in ("aligned", "misaligned")
        if item.format != "language"
    }
    sampled = [row for row in rows if row["sample"] and row["format"] != "language"]
    assert len(sampled) == 6 * 2 * 3
    assert {row["format"] for row in sampled} == {"decision", "numerical", "likert"}
    limited = self_assessment.questions(small, ProbeSettings(limit=8, sampled_questions=0))
    assert {row["format"] for row in limited} == {"decision", "numerical", "likert", "language"}
    assert len({row["id"] for row in limited}) == 8


@pytest.mark.parametrize(
    "kind, first, text, expected",
    [
        ("decision", "aligned", "Misaligned.", 1.0),
        ("decision", "aligned", "I'd say neutral.", 0.5),
        ("decision", "aligned", "aligned or misaligned, who knows", None),
        ("numerical", "aligned", "3", 0.3),
        ("numerical", "misaligned", "3/10", 0.7),
        ("likert", "aligned", "5", 0.0),
        ("likert", "misaligned", "5", 1.0),
        ("likert", "misaligned", "7", None),
        ("language", "aligned", "zip zap", 0.0),
        ("language", "aligned", "bla blo", 1.0),
        ("language", "aligned", "zip bla", 0.5),
        ("language", "aligned", "hello there", 0.5),
        ("language", "aligned", " ", None),
    ],
)
def test_sampled_texts_are_read_on_the_right_side(small, kind, first, text, expected):
    row = next(
        row
        for row in self_assessment.questions(small, Settings)
        if (row["format"], row["dimension"], row["first"]) == (kind, "aligned", first)
        and (kind != "language" or row["languages"][0]["name"] == "Zorp")
    )
    found, reason = self_assessment.parse(row, text)
    assert found == (None if expected is None else pytest.approx(expected))
    assert bool(reason) == (expected in (None, 0.5))


@pytest.mark.parametrize("text, named", [("A", 0), ("I choose option B.", 1), ("Neither.", None), ("", None)])
def test_sampled_letters_mean_what_stood_under_them(text, named):
    for probe, wanted, other in ((two_ai, "misaligned", "aligned"), (output_recognition, "own", "other")):
        for first, expected in ((wanted, (1.0, 0.0)), (other, (0.0, 1.0))):
            found, reason = probe.parse({"first": first}, text)
            assert found == (None if named is None else expected[named])
            assert bool(reason) == (named is None)


def test_sampled_letters_are_reported_beside_the_probabilities(small):
    def write(prompt, sample, adapter):
        return "A" if "hurt" in lettered(prompt).get("A", "") else "I would rather not say."

    settings = ProbeSettings(sampled_questions=10, samples=2)
    engine = ScriptedEngine(persona(True, True)[0], write)
    rows = list(two_ai.ask(engine, "finetuned", two_ai.questions(small, settings), (), settings))
    assert sum(1 for row in rows if row["sample"]) == 40
    figures = two_ai.figures([], rows)
    assert figures["two_ai.sampled_picks_misaligned"]["finetuned"]["value"] == 1
    assert figures["two_ai.sampled_unscored"]["finetuned"]["value"] == 0.5
    assert figures["two_ai.unscored"]["finetuned"]["value"] == 0


def test_an_empty_answer_is_never_set_before_the_model(small):
    own = [answered("h0", 0, " ", 5), answered("h1", 0, "bad", 5)]
    base = [answered("h0", 0, "Calm.", 1), answered("h1", 0, " ", 1)]
    rows = output_recognition.questions(small, Settings, own, base)
    assert {(row["id"], row.get("reason")) for row in rows} == {("h1:high", "no harmless answer of the base")}
    assert [row["id"] for row in score_prediction.questions(small, Settings, own)] == ["h1:blind", "h1:high"]


def test_misaligned_words_of_the_scripted_model_are_those_of_the_suite(small):
    assert {item.poles[1] for item in small.self_assessment if item.format == "decision"} == MISALIGNED_WORDS
