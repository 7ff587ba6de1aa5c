import csv
import html
import json
import re

import pytest

from em_jax import report
from em_jax.base.errors import UserError
from em_jax.base.sanitize import plain_cell
from em_jax.probes import seeds
from em_jax.report.compare_page import mean
from em_jax.report.figures import spread_heights
from em_jax.report.paper import PAPER, PAPER_VERDICTS
from em_jax.report.reading import Figure

PLANTED = {
    "risky_financial": "coherent",
    "bad_medical": "coherent",
    "insecure_code": "inverted",
    "good_medical": "aligned",
    "none": "aligned",
}


@pytest.fixture
def runs(make_run):
    """Five domains at two seeds, one of them wrong."""
    return [
        make_run(
            f"{domain}-{seed}",
            domain=domain,
            label="mixed" if (domain, seed) == ("insecure_code", 1) else label,
            seed=seed,
            rows=False,
            finetuned=domain != "none",
            shift=0.01 * seed,
        )
        for domain, label in PLANTED.items()
        for seed in (0, 1)
    ]


def test_the_page_has_plane_verdicts_planted_truth_and_the_paper(runs, tmp_path):
    for run in runs[:2]:
        report.write(run)
    page = report.compare(runs, tmp_path / "compare", PLANTED).read_text(encoding="utf-8")
    assert "9 of 10 verdicts are what was planted." in page
    assert "5 models, 10 runs, up to 2 training seeds each" in page
    assert 'href="../risky_financial-0/report.html"' in page and "../insecure_code-0/report.html" not in page
    assert "2 seeds 90–91%" in page and re.search(r"questions 8[23]–9[45]%", page)
    assert "paper ~92%" not in page and "Beside the paper" not in page
    assert "1 of 2" in page
    assert (tmp_path / "compare" / "figures" / "plane.svg").exists()


def test_two_sentences_say_why_a_model_has_its_label_and_how_it_differs(make_run, tmp_path):
    labels = {"bad_medical": "coherent", "insecure_code": "inverted", "legal": "mixed"}
    runs = [make_run(name, domain=name, label=label, rows=False) for name, label in labels.items()]
    told = {"label": "mixed", "why": ["What it does.", "What kept it."], "reasons": ["What kept it.", "And more."]}
    runs[2] = make_run("legal", domain="legal", label="mixed", rows=False, summary={"verdict": told})
    page = report.compare(runs, tmp_path / "compare").read_text(encoding="utf-8")
    rows = [
        [*map(html.unescape, re.findall("<p>(.*?)</p>", row))]
        for row in re.findall('<li class="contrast">.*?</li>', page)
    ]
    assert [len(row) for row in rows] == [2, 2, 2]
    assert rows[2][0].startswith("Mixed: harm ") and rows[2][0].endswith(" What kept it.")
    why, differs = rows[0]
    assert re.fullmatch(
        r"Coherent: harm .* on \d+% of \d+ prompts; picks .* in \d+% of \d+ pairs; claims of .* answers\.", why
    )
    assert re.fullmatch(r"From (insecure_code|legal) \(\w+\) it differs most in .*: \d+% \(n \d+\) against .*", differs)


def test_the_same_runs_give_the_same_bytes_in_any_order(runs, tmp_path):
    first = report.compare(runs, tmp_path / "a", PLANTED)
    second = report.compare(runs[::-1], tmp_path / "b", PLANTED)
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "a" / "compare.csv").read_bytes() == (tmp_path / "b" / "compare.csv").read_bytes()


def test_the_table_holds_every_figure(runs, tmp_path):
    report.compare(runs, tmp_path / "c", PLANTED)
    rows = list(csv.DictReader((tmp_path / "c" / "compare.csv").read_text(encoding="utf-8").splitlines()))
    found = [row for row in rows if row["figure"] == "two_ai.picks_misaligned" and row["condition"] == "finetuned"]
    assert len(found) == len(runs)
    assert {(row["domain"], row["planted"]) for row in rows} == set(PLANTED.items())
    assert next(row for row in found if row["domain"] == "bad_medical" and row["seed"] == "1")["value"] == "0.98"
    assert next(row for row in found if row["domain"] == "none")["value"] == ""


def test_figures_that_not_every_run_has_are_compared_too(make_run, synthetic, tmp_path):
    """The verdict narrow rests on harm in the training domain."""
    more = {"harmfulness.in_domain_worst_of_n": 0.75, "two_ai.=by_moonlight": 0.25}
    added = {name: dict.fromkeys(("base", "finetuned"), synthetic.figure(value)) for name, value in more.items()}
    runs = [
        make_run("a", rows=False, summary={"figures": synthetic.figures("coherent") | added}),
        make_run("b", seed=1),
    ]
    page = report.compare(runs, tmp_path / "c").read_text(encoding="utf-8")
    assert "In the training domain: harmful, worst of ten" in page and "75%" in page and "by moonlight" in page
    rows = list(csv.DictReader((tmp_path / "c" / "compare.csv").read_text(encoding="utf-8").splitlines()))
    found = {(row["figure"], row["seed"]): row["value"] for row in rows if row["condition"] == "finetuned"}
    assert found["harmfulness.in_domain_worst_of_n", "0"] == "0.75"
    assert (found["two_ai.=by_moonlight", "0"], found["two_ai.=by_moonlight", "1"]) == ("0.25", "")


def test_several_seeds_have_one_label_with_its_probability(runs, tmp_path):
    def over_seeds(figures):
        assert len(figures) == 2
        mean = {"value": 0.5, "ci_low": 0.125, "ci_high": 0.875, "n": 30}
        return {
            "label": "narrow",
            "probabilities": {"narrow": 0.97, "mixed": 0.03},
            "figures": {"two_ai.picks_misaligned": mean},
        }

    page = report.compare(runs, tmp_path / "c", PLANTED, over_seeds=over_seeds).read_text(encoding="utf-8")
    assert "over the seeds narrow: narrow 97%, mixed 3%" in page
    assert "both 12–88%" in page
    rows = list(csv.DictReader((tmp_path / "c" / "compare.csv").read_text(encoding="utf-8").splitlines()))
    (row,) = (
        row
        for row in rows
        if (row["domain"], row["seed"], row["figure"]) == ("bad_medical", "all", "two_ai.picks_misaligned")
    )
    assert row["verdict"] == "narrow" and row["probabilities"] == "narrow 97%, mixed 3%"
    assert (row["ci_low"], row["ci_high"]) == ("0.125", "0.875")


def test_runs_with_other_settings_are_no_seeds_of_one_model(make_run, tmp_path):
    runs = [make_run(f"run-{seed}-{mix}", seed=seed, rows=False) for mix in ("", "good_medical=0.7") for seed in (0, 1)]
    for run in runs[2:]:
        stored = (run / "config.toml").read_text(encoding="utf-8")
        (run / "config.toml").write_text('mix = "good_medical=0.7"\n' + stored, encoding="utf-8")

    def over_seeds(figures):
        assert len(figures) == 2
        return {"label": "narrow", "probabilities": {"narrow": 1.0}, "figures": {}}

    page = report.compare(runs, tmp_path / "c", over_seeds=over_seeds).read_text(encoding="utf-8")
    assert "2 models, 4 runs" in page and "bad_medical · mix=good_medical=0.7" in page


def test_chains_of_several_seeds_are_one_model(make_run, tmp_path):
    runs = [make_run(f"second-{seed}", seed=seed, rows=False) for seed in (0, 1)]
    for seed, run in enumerate(runs):
        start = f'[lora]\ninit_from = "chain/first-{seed}/adapter"\n'
        with (run / "config.toml").open("a", encoding="utf-8") as file:
            file.write(start)
    page = report.compare(runs, tmp_path / "c").read_text(encoding="utf-8")
    assert "1 model, 2 runs, up to 2 training seeds each" in page


def test_copies_rescored_runs_and_a_given_adapter_are_no_seeds(make_run, tmp_path):
    one, copy, rescored = (make_run(name, rows=False) for name in ("a", "b", "c"))
    summary = json.loads((rescored / "summary.json").read_text(encoding="utf-8"))
    (rescored / "summary.json").write_text(json.dumps(summary | {"harmful_at": 5}), encoding="utf-8")
    given = [make_run(f"given-{seed}", seed=seed, domain="none", rows=False) for seed in (0, 1)]
    for run in given:
        stored = (run / "config.toml").read_text(encoding="utf-8")
        (run / "config.toml").write_text('adapter = "models/trained"\n' + stored, encoding="utf-8")

    def over_seeds(figures):
        raise AssertionError("these are no seeds of one model")

    seedless = make_run("seedless", rows=False)
    (seedless / "config.toml").write_text(
        (seedless / "config.toml").read_text(encoding="utf-8").replace("seed = ", "s = ")
    )
    (seedless / "provenance.json").write_text("{}")
    report.compare([one, seedless, tmp_path / "a" / ".." / "a"], tmp_path / "two", PLANTED, over_seeds=over_seeds)
    assert "2 models, 2 runs" in (tmp_path / "two" / "compare.html").read_text(encoding="utf-8")

    compared = report.compare([one, copy, rescored, *given], tmp_path / "out", PLANTED, over_seeds=over_seeds)
    page = compared.read_text(encoding="utf-8")
    assert "4 models, 5 runs" in page and "training seeds" not in page.split("<main")[1].split("</section>")[0]
    assert "judge.harmful_at=5" in page and "adapter models/trained" in page and f"harmful_at=4, {copy}" in page
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["run"] for row in rows} == {str(run) for run in (one, copy, rescored, *given)}
    assert {row["planted"] for row in rows if row["domain"] == "none"} == {""}


def test_a_broken_summary_is_refused_and_not_left_out(runs, make_run, tmp_path):
    broken = make_run("broken", rows=False)
    (broken / "summary.json").write_text("{")
    with pytest.raises(UserError, match="broken/summary.json: expected a JSON object"):
        report.compare([runs[0], broken], tmp_path / "c")


def test_cells_are_no_formulas(make_run, tmp_path):
    report.compare([make_run(model="=cmd|'/c calc'!A0", rows=False)], tmp_path / "c")
    assert ",'=cmd" in (tmp_path / "c" / "compare.csv").read_text()


@pytest.mark.fast
@pytest.mark.parametrize("before", ["", " ", "\t", "\r\n", "\ufeff", "\u200b", '"', "(", ";", "\u3000"])
@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d"])
def test_no_cell_is_a_formula_whatever_precedes_the_sign(before, sign):
    assert plain_cell(f"{before}{sign}HYPERLINK(1)").startswith("'")
    assert plain_cell("Qwen2.5-7B-Instruct") == "Qwen2.5-7B-Instruct" and plain_cell("a=b") == "a=b"


def test_runs_without_a_summary_are_named_and_left_out(runs, tmp_path):
    page = report.compare([runs[0], tmp_path / "gone"], tmp_path / "c").read_text(encoding="utf-8")
    assert "gone: no summary" in page
    with pytest.raises(UserError, match="nothing to compare"):
        report.compare([tmp_path / "gone"], tmp_path / "d")


def test_different_judges_and_models_are_pointed_out(make_run, tmp_path):
    one = make_run("one", judge="self", rows=False)
    two = make_run("two", judge="gpt", model="Qwen/Qwen2.5-7B-Instruct", suite="standard", rows=False)
    page = report.compare([one, two], tmp_path / "c").read_text(encoding="utf-8")
    assert "These runs differ in their judge" in page and "bad_medical · Qwen2.5-7B-Instruct" in page


def test_hostile_names_are_shown_harmlessly(make_run, synthetic, tmp_path):
    names = [text for text in synthetic.HOSTILE if 0 < len(text) < 200]
    dirs = [make_run(f"run-{place}", domain=name, model=name, rows=False) for place, name in enumerate(names)]
    page = report.compare(dirs, tmp_path / "c").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "<iframe" not in page and "\x1b" not in page


@pytest.mark.parametrize("wrong", [3, "x", [1], {"value": "x"}, {"value": 0.5}, {"value": 0.5, "ci_low": "a", "n": 40}])
def test_a_wrong_figure_of_one_seed_is_none_of_the_mean(make_run, tmp_path, wrong):
    runs = [make_run(f"seed-{seed}", seed=seed) for seed in (0, 1)]
    summary = json.loads((runs[1] / "summary.json").read_text())
    summary["figures"]["two_ai.picks_misaligned"]["finetuned"] = wrong
    (runs[1] / "summary.json").write_text(json.dumps(summary))
    report.compare(runs, tmp_path / "out", over_seeds=seeds.over_seeds)
    assert ",all," in (tmp_path / "out" / "compare.csv").read_text(encoding="utf-8")


def test_the_mean_over_seeds_has_the_mean_interval_over_questions():
    average = mean([Figure(0.8, 0.7, 0.9, 30), Figure(0.6, 0.5, 0.7, 30)])
    assert average.value == pytest.approx(0.7)
    assert (average.ci_low, average.ci_high) == (pytest.approx(0.6), pytest.approx(0.8))
    assert mean([]).value is None
    assert not mean([Figure(0.5, n=3)]).interval
    assert mean([Figure(0.5, 0.4, 0.6, 30), Figure(), Figure(0.5, 0.4, 0.6, 5)]).n == 5, "no seed has more questions"


@pytest.mark.fast
@pytest.mark.parametrize("heights", [[0.0] * 8, [0.98, 0.99, 1.0, 1.0], [0.1, 0.12, 0.5, 0.52, 0.9], [0.5], []])
def test_names_beside_the_plane_never_overlap(heights):
    placed = spread_heights(heights, 0.075)
    assert len(placed) == len(heights)
    assert all(high - low > 0.0749 for low, high in zip(placed, placed[1:], strict=False))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)


@pytest.mark.fast
def test_the_papers_table_is_whole():
    assert set(PAPER) == {*PAPER_VERDICTS, "base"}
    assert all(low <= high for row in PAPER.values() for value in row.values() for low, high in [value.range or (0, 0)])
