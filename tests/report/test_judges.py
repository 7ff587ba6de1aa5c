"""The table of several judges on the page: shown where it is, harmless whatever it holds."""

import pytest

from em_jax import report
from em_jax.probes import summary
from em_jax.report.judges import judge_pairs
from em_jax.report.reading import read_run

pytestmark = pytest.mark.fast


def rows(shift):
    return [{"id": f"q{i}", "sample": 0, "score": min(5, 1 + i % 5 + shift * (i % 3 == 0))} for i in range(20)]


def test_the_table_is_shown_with_kappa_and_the_confusion(make_run):
    table = summary.agreement_table({"self": {"base": rows(0)}, "gpt-4o-mini": {"base": rows(1)}})
    directory = make_run(rows=False, summary={"judge_agreement_table": table})
    (pair,) = judge_pairs(read_run(directory))
    assert pair["names"] == ("gpt-4o-mini", "self") and pair["answers"] == 20 and sum(map(sum, pair["confusion"])) == 20
    page = report.write(directory).read_text()
    assert "Can the judge be believed?" in page and "gpt-4o-mini" in page and "20 answers scored by both" in page
    assert f"{table[0]['binary_kappa']['value']:.2f}" in page and "Score by score" in page


HOSTILE = {"judges": ["<script>alert(1)</script>", "\u202eb"], "confusion": [[1]], "unscored": 3}


@pytest.mark.parametrize(
    "given, pairs", [(None, 0), ({}, 0), ("x", 0), ([1], 0), ([{"judges": ["a"]}], 0), ([HOSTILE], 1)]
)
def test_a_table_of_another_form_breaks_no_page(make_run, given, pairs):
    directory = make_run(rows=False, summary={"judge_agreement_table": given})
    assert len(judge_pairs(read_run(directory))) == pairs
    page = report.write(directory).read_text()
    assert "<script>alert" not in page and "\u202e" not in page and "Score by score" not in page
