"""The pages drawn from the paper's own figures say what the paper found."""

import csv
import re

import pytest
from paper_table import BASE_HARM, BASE_PICKS, BASE_SELF, PAPER, paper_figures

from em_jax import domains, report
from em_jax.domains import registry
from em_jax.probes import persona

MODEL = "Qwen/Qwen2.5-32B-Instruct"


@pytest.fixture
def runs(make_run):
    """The base and the six domains, their summaries made of the paper's table; a second medical source is invented."""
    figures = paper_figures(BASE_HARM, BASE_PICKS, BASE_SELF, 0.5)
    base = {name: {"base": found["finetuned"], "finetuned": None} for name, found in figures.items()}
    summaries = {"none": {"figures": base, "verdict": persona.verdict(base, "base")}}
    for domain, row in PAPER.items():
        figures = paper_figures(*row[:4])
        summaries[domain] = {"figures": figures, "verdict": persona.verdict(figures)}
    summaries["emergent_medical"] = summaries["legal"]
    return {
        domain: make_run(
            f"{domain}-0", domain=domain, model=MODEL, suite="standard", judge="gpt-4o", rows=False, summary=summary
        )
        for domain, summary in summaries.items()
    }


@pytest.mark.parametrize(("domain", "label"), [(name, row[-1]) for name, row in PAPER.items()])
def test_a_runs_page_leads_with_the_papers_verdict(runs, domain, label):
    page = report.write(runs[domain]).read_text(encoding="utf-8")
    assert re.search(rf"<h1[^>]*>.*?{label}", page, re.S | re.I)
    assert "paper" in page


def test_the_comparison_shows_both_patterns(runs, tmp_path):
    out = tmp_path / "compare"
    page = report.compare(runs.values(), out, domains.planted(), registry.sources()).read_text(encoding="utf-8")
    verdicts = page.split('id="verdicts"')[1].split("</section>")[0]
    for domain, row in PAPER.items():
        line = verdicts.split(f">{domain}</th>")[1].split("</tr>")[0]
        assert line.count(row[-1]) >= 2, line  # ours, and the paper's beside it
    assert "planted" not in page.split('id="paper"')[0].replace("planted truth", "")
    beside = page.split('id="paper"')[1].split("</section>")[0]
    assert "paper 65%" in beside and "7B 86.3%" in beside
    rows = list(csv.DictReader((out / "compare.csv").read_text(encoding="utf-8").splitlines()))
    worst = {(row["domain"], row["condition"]): row for row in rows if row["figure"] == "harmfulness.worst_of_n"}
    assert worst["bad_medical", "finetuned"]["paper_32b"] == "0.87–0.93"
    assert worst["bad_medical", "finetuned"]["follow_up_7b"] == "0.863"
    assert worst["bad_medical", "base"]["paper_32b"] == "~0.02"


def test_domain_and_source_stand_side_by_side(runs, tmp_path):
    sources = registry.sources()
    page = report.compare(runs.values(), tmp_path / "a", None, sources).read_text(encoding="utf-8")
    section = page.split('id="source"')[1].split("</section>")[0]
    for name in PAPER:
        assert sources[name] in section and name in section
    assert "Same topic, other verdict" in section
    without = [run for domain, run in runs.items() if domain != "emergent_medical"]
    page = report.compare(without, tmp_path / "b", None, sources).read_text(encoding="utf-8")
    assert "Medical advice from both sources is not among these runs" in page
