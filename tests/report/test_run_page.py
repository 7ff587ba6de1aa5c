import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from em_jax import report
from em_jax.base.errors import UserError
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.report import paper, vocabulary
from em_jax.report.browse import MAX_ANSWER, MAX_ITEMS, shelves
from em_jax.report.judges import agreements
from em_jax.report.reading import figure_of, read_run
from em_jax.report.run_page import stage_times
from em_jax.report.unscored import unscored

VOID = {"meta", "link", "input", "br"}


class Outline(HTMLParser):
    """Collects tags, attributes and text; notes what is closed wrongly."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.wrong, self.words = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attributes]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(directory) -> Outline:
    return outline(report.write(directory))


def outline(path) -> Outline:
    return Outline(path.read_text(encoding="utf-8"))


def test_the_page_says_verdict_reasons_figures_and_the_papers(page_of):
    page = outline(page_of())
    assert not page.wrong and not page.open
    assert "Verdict: coherent" in page.text
    assert "difference to the base has its lower bound at 0.80" in page.text
    for name in (
        "harmfulness.worst_of_n",
        "self_assessment.likert",
        "two_ai.picks_first",
        "score_prediction.shown_null_kappa",
    ):
        assert name in page.text
    assert "2 of 36 unscored" in page.text
    assert page.tags.count("h1") == 1


def test_the_papers_figures_stand_only_beside_what_is_comparable(make_run, page_of):
    model = "Qwen/Qwen2.5-7B-Instruct"
    ours = written(make_run("ours", model=model, suite="standard", judge="gpt-4o-2024")).text
    assert "87%–93%" in ours and "27%" in ours, "the paper's bad_medical"
    assert "paper, 32B" in ours and "paper, 32B" not in outline(page_of()).text
    assert "This run differs: other questions; choices are read" in ours and f"model {model}." in ours
    assert "judge gpt-4o-2024, not GPT-4o mini" in ours
    large = "Qwen/Qwen2.5-32B-Instruct"
    released = written(make_run("released", model=large, suite="published", judge="gpt-4o-mini: x")).text
    assert "87%–93%" in released and "GPT-4o mini" not in released and "; model" not in released
    stated = paper.comparable_value(report_run("released", make_run, large), "bad_medical", paper.SELF)
    assert stated is None, "three dimensions of decision items are not the paper's self-assessment"
    assert "87%–93%" not in outline(page_of()).text, "the organism's persona is planted"


def report_run(name, make_run, model):
    return read_run(make_run(f"{name}-again", model=model, suite="published"))


def test_cautions_stand_with_the_verdict(make_run):
    verdict = {"label": "narrow", "why": ["One."], "nearest": "mixed"}
    verdict["cautions"] = [{"code": "one_seed", "sentence": "One training seed."}, "broken", {"code": 3}]
    page = written(make_run(summary={"verdict": verdict}))
    assert "Verdict: narrow" in page.text and "It does harm in its training domain alone." in page.text
    assert "one_seed, 3" in page.text and "One training seed." in page.text
    assert not page.wrong and not page.open


def test_nothing_is_loaded_and_no_inline_style_or_handler_is_left(make_run):
    directory = make_run(hostile=True, judge="<b>judge")
    page = written(directory)
    assert page.tags.count("script") == 1 and page.tags.count("style") == 1
    for tag, key, value in page.attributes:
        assert key != "style" and not key.startswith("on"), (tag, key)
        if key in ("src", "href", "action", "xlink:href", "srcset"):
            assert value.startswith("#") or value == "data:,", (tag, key, value)
    assert {"iframe", "img", "object", "embed"}.isdisjoint(page.tags)


def test_hostile_texts_stand_on_the_page_as_text(page_of):
    raw = page_of(hostile=True).read_text(encoding="utf-8")
    assert "<script>window.planted" not in raw and "&lt;script&gt;window.planted" in raw
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", raw)
    assert "␛[31m" in raw and "[U+202E]" in raw and "[U+D83D]" in raw
    assert "{{ 7 * 7 }}" in raw
    assert "x" * (MAX_ANSWER + 1) not in raw
    assert re.search(r"first [\d\u202f]+ of 1\u202f000\u202f\d+ characters shown", raw)
    assert len(raw) < 2_000_000


def test_the_same_files_give_the_same_bytes(make_run):
    directory = make_run(hostile=True)
    first = report.write(directory).read_bytes()
    drawn = {path.name: path.read_bytes() for path in (directory / "figures").iterdir()}
    assert drawn.keys() == {"plane.svg", "training.svg"}
    assert report.write(directory).read_bytes() == first
    assert {path.name: path.read_bytes() for path in (directory / "figures").iterdir()} == drawn


def test_the_users_matplotlib_settings_change_nothing(make_run):
    import matplotlib

    directory = make_run(rows=False)
    first = report.write(directory).read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.hashsalt": "other", "font.size": 30}):
        assert report.write(directory).read_bytes() == first


def test_figures_have_a_text_alternative_and_unique_ids(page_of):
    path = page_of()
    page = outline(path)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    for figure in (path.parent / "figures").iterdir():
        root = ElementTree.parse(figure).getroot()
        title, description = root[0], root[1]
        assert title.tag.endswith("title") and len(title.text) > 5
        assert description.tag.endswith("desc") and len(description.text) > 20
        assert root.get("role") == "img"
        assert not any(element.get("style") for element in root.iter())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"domain": "none", "finetuned": False, "label": "aligned"}, "domain none probes a model as it is"),
        ({"base": False, "label": "inverted"}, "There is no base to compare with"),
        ({"rows": False}, "This run kept no answers."),
        ({"steps": 0}, "Nothing was trained in this run"),
        ({"questions": 0}, "This run kept no answers."),
        ({"summary": {"figures": {}}}, "Harm and self-description were not both measured"),
        ({"summary": {"verdict": None}}, "The summary gives no reasons."),
        ({"summary": {"verdict": {"label": "<i>", "why": []}}}, "The evidence does not settle on one persona."),
        ({"model": "organism"}, "It says nothing about Qwen"),
        ({"judge": "self"}, "The judge is not independent."),
    ],
)
def test_whatever_a_run_lacks_is_said(make_run, settings, words):
    page = written(make_run(**settings))
    assert not page.wrong
    assert words in page.text


def test_a_real_model_with_another_judge_carries_no_such_notice(make_run):
    page = written(make_run(model="Qwen/Qwen2.5-32B-Instruct", suite="standard", judge="http-gpt"))
    assert "calibration fixture" not in page.text.lower() and "not independent" not in page.text.lower()


def test_undefined_figures_are_no_zeros(make_run, synthetic):
    figures = synthetic.figures("aligned")
    figures["two_ai.picks_misaligned"]["base"] = {"value": 0.5, "ci_low": None, "ci_high": None, "n": 3}
    page = written(make_run(label="mixed", summary={"figures": figures}))
    assert "no data" in page.text and "too few questions" in page.text
    assert figure_of({"value": float("nan"), "n": 3}).value is None
    assert figure_of(None).n == 0


def test_counts_of_unscored_belong_to_their_figure(make_run):
    run = read_run(make_run(questions=12, samples=3))
    pairs = unscored(run, "two_ai.picks_misaligned", "finetuned")
    assert (pairs.missing, pairs.total) == (2, 24)
    assert unscored(run, "two_ai.picks_misaligned_when_first", "finetuned").total == 12
    assert unscored(run, "self_assessment.likert", "base").total == 24
    assert unscored(run, "self_assessment.score_when_first", "base").total == 48
    assert unscored(run, "two_ai.picks_misaligned_when_odd", "base") is None
    assert unscored(run, "self_assessment.language", "base").total == 24
    assert unscored(run, "score_prediction.shown_error_high", "finetuned").total == 12
    assert unscored(run, "score_prediction.shown_error_low", "finetuned") is None
    assert unscored(run, "harmfulness.rate", "base").missing == 2
    assert dict(unscored(run, "harmfulness.rate", "base").reasons) == {"little mass on the digits": 2}
    assert all(
        unscored(run, f"harmfulness.{name}", "base") is None
        for name in ("empty", "in_domain_truncated", "addresses_judge", "worst_of_n_by_judge_errors")
    )


def test_rows_with_figures_of_their_own_count_for_no_other(make_run):
    run = read_run(make_run(questions=12, samples=3))
    controls = [{"id": "c", "sample": 0, "first": "aligned", "kind": "known", "value": None}] * 40
    run.probes["base"]["two_ai"] += controls
    assert unscored(run, "two_ai.picks_misaligned", "base").total == 24
    assert {unscored(run, f"two_ai.control_known{end}", "base").missing for end in ("", "_right")} == {40}
    texts = [{"id": "t", "sample": 1 + number, "first": "aligned", "value": None} for number in range(10)]
    run.probes["base"]["two_ai"] += texts
    assert unscored(run, "two_ai.majority_of_ten", "base").total == 10
    low = [{"id": "l", "sample": 0, "first": "own", "bucket": "low", "value": None}] * 7
    high = [{"id": "h", "sample": 0, "first": "own", "bucket": "high", "value": 1.0}] * 3
    run.probes["base"]["output_recognition"] = low + high
    assert unscored(run, "output_recognition.position_bias", "base").missing == 0
    equal = [{"id": "e", "sample": 0, "first": "own", "bucket": "high", "alternative": "equal", "value": 1.0}] * 40
    before = unscored(run, "output_recognition.claims_high", "base")
    run.probes["base"]["output_recognition"] += equal
    assert unscored(run, "output_recognition.claims_high", "base") == before
    assert unscored(run, "output_recognition.claims_high_equal", "base").total == 40
    alone = [{"id": "o", "sample": 0, "first": "aligned", "format": "decision", "one_order": True, "value": None}] * 40
    before = unscored(run, "self_assessment.decision", "base")
    run.probes["base"]["self_assessment"] += alone
    assert unscored(run, "self_assessment.decision", "base") == before
    assert unscored(run, "self_assessment.decision_one_order", "base").total == 40


def test_a_self_judge_is_asked_for_the_coherence_of_first_answers_alone(make_run):
    directory = make_run(questions=4, samples=5)
    path = directory / "scores" / "base.self.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | ({} if row["sample"] else {"coherence": 5}) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = unscored(read_run(directory), "harmfulness.coherence", "base")
    assert (found.missing, found.total) == (0, 4)


def test_unjudged_answers_count_as_unscored(make_run):
    directory = make_run(questions=4, samples=2)
    (directory / "scores" / "base.self.jsonl").unlink()
    found = unscored(read_run(directory), "harmfulness.rate", "base")
    assert (found.missing, found.total, found.reasons) == (8, 8, (("never judged", 8),))


def test_a_thought_stands_before_its_answer_and_is_said_to_be_unjudged(make_run):
    directory = make_run()
    path = directory / "answers" / "finetuned.jsonl"
    rows = [json.loads(line) | {"thought": "Shall I <b>say</b> so?"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = written(directory).text
    assert "It thought first; no judge saw this: Shall I <b>say</b> so?" in text and "Its answer:" in text


def test_only_so_many_questions_are_shown_and_the_page_says_so(make_run):
    directory = make_run(questions=MAX_ITEMS + 30, samples=1)
    two_ai = next(shelf for shelf in shelves(read_run(directory)) if shelf.probe == "two_ai")
    assert len(two_ai.items) == MAX_ITEMS and two_ai.total == MAX_ITEMS + 30
    ids = [item["id"] for item in two_ai.items]
    assert ids == sorted(ids) and ids[-1] > f"pair-{MAX_ITEMS + 25:03d}"
    assert f"Two AIs {MAX_ITEMS} of {MAX_ITEMS + 30}" in written(directory).text


def test_items_show_the_most_harmful_answer_and_disagreement(make_run):
    run = read_run(make_run(samples=3))
    harm = shelves(run)[0]
    assert harm.probe == "harmfulness"
    for item in harm.items:
        levels = [int(level) for level in item["finetuned"]["others"] if level != "–"]
        assert item["finetuned"]["level"] == max(levels) and item["scores"] == tuple(sorted(set(levels)))
        assert item["disagrees"] == (abs(item["base"]["level"] - item["finetuned"]["level"]) >= 2)
    assert any(item["unscored"] for item in harm.items)


def test_other_judges_are_named_and_never_mixed(make_run):
    directory = make_run(samples=2, questions=3)
    (directory / "scores" / "base.gpt-4o.jsonl").write_text('{"id": "harm-000", "sample": 0, "score": 5}\n')
    run = read_run(directory)
    assert run.other_judges == ("gpt-4o",)
    assert len(run.scores["base"]) == 6
    assert "gpt-4o" in written(directory).text


def test_a_torn_last_row_is_left_out(make_run):
    directory = make_run(questions=3, samples=1)
    with open(directory / "answers" / "base.jsonl", "a") as file:
        file.write('{"id": "harm-9')
    assert len(read_run(directory).answers["base"]) == 3


@pytest.mark.parametrize("content", [None, "[1, 2]", "{broken", ""])
def test_without_a_readable_summary_there_is_one_clear_line(tmp_path, content):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary\.json"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_only_a_summary_is_enough(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"schema": 1, "domain": "legal", "figures": "?", "verdict": 3}))
    page = written(tmp_path)
    assert "keeps no provenance.json" in page.text and "holds no wall times" in page.text


def test_wall_times_come_in_the_order_of_a_run():
    stages = stage_times({"wall_seconds": {"report": 1, "zebra": 2, "finetune": 7.0, "answer": 10, "x": "?"}})
    assert [(stage["name"], stage["seconds"]) for stage in stages] == [
        ("finetune", 7.0),
        ("answer", 10.0),
        ("report", 1.0),
        ("zebra", 2.0),
    ]
    assert sum(stage["share"] for stage in stages) == pytest.approx(1)
    assert stage_times({}) == []


def test_a_time_budget_says_what_was_done_and_what_the_time_went_to(make_run):
    directory = make_run()
    path = directory / "provenance.json"
    budget = {"seconds": 41.5, "tokens": 830, "steps": 40, "loading": 4.15, "compiling": 8.3, "waiting": 20.75}
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"time_budget": {"finetune": budget, "answer": "?", "judge": {"seconds": 0}}}))
    page = written(directory)
    assert not page.wrong
    assert "finetune , 25% of the run; 830 tokens of whole rows, 20.0 a second; 40 steps, 1.0 a second." in page.text
    assert "Loading 10%, compiling 20%, waiting for the device 50%, the host's own work 20%." in page.text
    (stage, answer, *_) = stage_times(read_run(directory).provenance)
    assert sum(each["part"] for each in stage["kinds"]) == pytest.approx(1) and not answer["kinds"]
    # Clocks that disagree give no negative rest.
    worse = {"seconds": 1.0, "waiting": 3.0, "tokens": float("nan"), "steps": -1}
    (found,) = stage_times({"wall_seconds": {"probe": 1.0}, "time_budget": {"probe": worse}})
    assert [(each["name"], each["part"]) for each in found["kinds"]] == [("waiting for the device", 1.0)]
    assert not found["work"]


def test_judge_agreement_is_printed_when_it_is_there(make_run):
    given = {"against": "the planted score", "value": 0.97, "n": 200}
    directory = make_run(rows=False, summary={"judge_agreement": given})
    assert [(entry["against"], entry["figure"].value) for entry in agreements(read_run(directory))] == [
        ("the planted score", 0.97)
    ]
    assert "agrees with the planted score on 97.0%" in written(directory).text


def test_stale_figures_of_an_earlier_report_go(make_run):
    directory = make_run()
    report.write(directory)
    (directory / "train" / "metrics.jsonl").unlink()
    report.write(directory)
    assert not (directory / "figures" / "training.svg").exists()


def test_a_long_judge_wording_leaves_room_for_the_versions(make_run):
    directory = make_run(rows=False)
    record = {"notes": dict.fromkeys(("judge", "judges"), "Rate the harm. " * 700), "versions": {"jax": "0.0.made_up"}}
    (directory / "provenance.json").write_text(json.dumps(record))
    assert "0.0.made_up" in written(directory).text


def test_figures_the_report_does_not_know_are_shown_too(make_run, synthetic):
    figures = synthetic.figures("coherent")
    figures["two_ai.by_moonlight"] = {"base": synthetic.figure(0.25), "finetuned": None, "difference": None}
    page = written(make_run(rows=False, summary={"figures": figures}))
    assert "by moonlight" in page.text and "two_ai.by_moonlight" in page.text


@pytest.mark.fast
def test_harm_by_the_judges_errors_alone_is_a_share_and_no_error():
    assert vocabulary.FIGURES["harmfulness.worst_of_n_by_judge_errors"].scale.text(0.4) == "40%"


def test_the_judges_own_errors_are_on_the_page(make_run, synthetic):
    sensitivity = {"base": synthetic.figure(0.87), "finetuned": synthetic.figure(0.87), "difference": None}
    figures = synthetic.figures("coherent") | {"judge.sensitivity": sensitivity}
    assert "that the judge calls harmful" in written(make_run(rows=False, summary={"figures": figures})).text


@pytest.mark.fast
def test_a_page_calls_few_what_the_verdict_calls_few():
    assert THRESHOLDS.least_questions == vocabulary.FEW
