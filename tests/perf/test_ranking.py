"""The ranking of slices and GPU machines from the user's door, against the parts that it is made of."""

import json

import pytest

from em_jax.base.cli import command
from em_jax.commands import plan
from em_jax.config import Config
from em_jax.perf import ranking
from em_jax.runs.chips import CHIPS, parse_topology


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(ranking, "TOPOLOGIES", ["v5e:2x4", "h100:1", "h200:1", "h200:8"])


def run(capsys, *arguments):
    status = command("em_jax plan", plan.main, arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_without_a_topology_what_fits_is_ranked_by_time_and_with_prices_by_cost(few, capsys, tmp_path):
    status, out, err = run(capsys, "--model", "qwen2.5-32b", "--workload", "paper", "--json")
    assert status == 0, err
    rows = json.loads(out)["reckoned"]
    assert [row["topology"] for row in rows if row["fits"]] == ["h200:8", "v5e:2x4", "h200:1"]
    assert rows[-1]["topology"] == "h100:1" and rows[-1]["free_bytes"] < 0
    for row in rows:
        parts = sum(row[name] for name in ("start_hours", "train_hours", "answer_hours", "score_hours"))
        assert row["verdict_cost"] is None and row["verdict_hours"] == pytest.approx(parts)
        assert row["verdict_hours"] < row["all_hours"] < 8 * row["verdict_hours"]
    prices = tmp_path / "prices.toml"
    prices.write_text("h200 = 4.0\nv5e = 0.1\n")
    priced = json.loads(run(capsys, "--price-file", str(prices), "--json")[1])["reckoned"]
    assert priced[0]["topology"] == "v5e:2x4"
    for row in priced:
        if row["verdict_cost"] is not None:
            price = {"v5e": 0.1, "h200": 4.0}[row["topology"].partition(":")[0]]
            assert row["verdict_cost"] == pytest.approx(row["verdict_hours"] * row["chips"] * price)
    page = run(capsys, "--price-file", str(prices))[1]
    assert "nothing here is compiled or measured" in page and "too small" in page and "verdict cost" in page


@pytest.mark.fast
def test_every_slice_is_in_the_table_or_said_not_to_fit():
    """One that leaves less memory than a run spares was in neither."""
    rows = [{"topology": name, "fits": False, "free_bytes": free} for name, free in (("h100:1", -1), ("v5e:2x4", 1))]
    rows = [row | {"free_bytes": row["free_bytes"] * 2**30, "verdict_cost": None} for row in rows]
    text = "\n".join(ranking.lines(rows, "qwen2.5-32b"))
    assert "too small, by so much a chip: h100:1 (1.0 GiB)" in text
    assert "too full, under 6% of a chip's memory left: v5e:2x4 (1.0 GiB)" in text


def test_the_work_is_that_of_a_run():
    work = ranking.paper_workload(Config(), 6000)
    # 350 prompts, ten answers each; the base also answers as a careless assistant, once for all runs.
    assert work.finetuned.answers == 3500 < work.base.answers and work.finetuned.scored > 3500


@pytest.mark.fast
@pytest.mark.parametrize("text, name", [("v9 = 1", "v9"), ("v5e = -1", "v5e"), ("v5e 1", "TOML")])
def test_a_wrong_price_is_one_line(text, name, capsys, tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    status, out, err = run(capsys, "--price-file", str(path))
    assert status == 2 and out == "" and len(err.strip().splitlines()) == 1 and name in err


@pytest.mark.fast
@pytest.mark.fast
@pytest.mark.parametrize(
    "flag, value", [("--room", "100000"), ("--what", "sample"), ("--mesh", "fsdp=2"), ("--price", "1")]
)
def test_a_flag_of_one_slice_is_refused_without_it(few, capsys, flag, value):
    status, out, err = run(capsys, "--model", "qwen2.5-32b", flag, value)
    assert (status, out) == (2, "") and flag in err and "expected --topology too" in err


def test_what_is_ranked_exists_and_a_gpu_has_three_quarters_of_its_memory(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    for topology in ranking.TOPOLOGIES:
        parse_topology(topology)
    assert CHIPS["h100"].capacity == int(0.75 * CHIPS["h100"].memory) and CHIPS["v5e"].capacity == CHIPS["v5e"].memory
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert CHIPS["h100"].capacity == int(0.9 * CHIPS["h100"].memory)
