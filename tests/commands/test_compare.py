import pytest
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax.base.cli import command
from em_jax.base.errors import UsageError
from em_jax.commands import compare
from em_jax.commands.report import main as redraw
from em_jax.config import Config
from em_jax.runs import experiment, stored


def test_runs_are_found_and_compared(tmp_path, capsys):
    values = {"model.name": "organism", "suite": "organism", "probes.limit": 2, "answers.samples": 1}
    for name in ("none", "legal"):
        config = settings.replace(Config(), values | {"domain": name, "probes.sampled_questions": 0})
        experiment.run(config, tmp_path / "runs" / name, StubComponents())
    assert command("compare", compare.main, [str(tmp_path / "runs"), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "compare.html").is_file()
    assert capsys.readouterr().out.strip() == str(tmp_path / "page" / "compare.html")
    # Beside the runs where nothing else is said; the page of some does not take the place of that of all.
    for runs, folder in ((["none", "legal"], "compare"), (["legal"], "compare-legal")):
        assert command("compare", compare.main, [str(tmp_path / "runs" / name) for name in runs]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "runs" / folder / "compare.html")


def test_a_page_is_drawn_again(tmp_path, capsys):
    values = {"model.name": "organism", "suite": "organism", "probes.limit": 2, "domain": "none", "answers.samples": 1}
    experiment.run(settings.replace(Config(), values | {"probes.sampled_questions": 0}), tmp_path, StubComponents())
    page = tmp_path / "report.html"
    page.unlink()
    assert command("report", redraw, [str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert "not enough evidence" in page.read_text(encoding="utf-8").lower()


def test_a_place_without_runs_is_one_line(tmp_path, capsys):
    assert command("compare", compare.main, [str(tmp_path)]) == 2
    assert "summary.json" in capsys.readouterr().err


def test_a_run_without_its_summary_is_not_taken_for_a_page(tmp_path):
    """It was left out of the comparison without a word, because it had a report."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for file in ("config.toml", "report.html", "summary.json"):
            (tmp_path / name / file).touch()
    (tmp_path / "other" / "summary.json").unlink()
    with pytest.raises(UsageError, match="other: expected a finished run"):
        stored.find([tmp_path / "one", tmp_path / "other"], several=True, finished=True)
