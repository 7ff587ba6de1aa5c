import json

import pytest

from em_jax.base import runtime
from em_jax.base.cli import command
from em_jax.commands import bench
from em_jax.perf import bench_workload, measuring, quick

pytestmark = pytest.mark.fast


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The command with a measurement that gives the speeds set here, a cache of its own, and no work done."""
    speeds = {"train": 100.0, "decode": 200.0, "ten_samples": 300.0}
    asked = []

    def measure(work, against, what, rounds, trace, keep=lambda results: None):
        asked.append((work.new_tokens, rounds))
        row = {"theirs_tokens_per_s": None, "ratio": None, "cpu_ratio": None, "first_round_s": 1.0}
        rows = {name: {**row, "ours_tokens_per_s": speed} for name, speed in speeds.items()}
        found = {"train": rows["train"], "decode": {**rows["decode"], "ten_samples": rows["ten_samples"]}}
        results = {"device": "a chip/2", "peak_bytes": None}
        for name in what:
            if speeds[name] is None:
                raise KeyboardInterrupt
            results[name] = found[name]
            keep(results)
        return results

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(runtime, "configure_jax", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return speeds, asked, tmp_path / "em_jax" / "bench"


def run(capsys, *arguments):
    status = command("em_jax bench", bench.main, arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_quick_result_stands_beside_the_last_one_of_the_device_and_shape(measured, capsys, monkeypatch):
    speeds, asked, place = measured
    status, out, _ = run(capsys, "--quick")
    assert status == 0 and "first quick result" in out and asked == [(quick.NEW_TOKENS, quick.ROUNDS)]
    speeds |= {"train": 150.0}
    monkeypatch.setattr(quick.files, "now", lambda: "3000-01-01T00:00:00Z")
    found = json.loads(run(capsys, "--quick", "--what", "train", "--json")[1])
    assert set(found["before"]) == {"train"}
    assert found["before"]["train"]["ratio"] == 1.5 and found["before"]["train"]["tokens_per_s"] == 100.0
    # What was not measured that time is still held against the time before, and said to be of then.
    (kept,) = (json.loads(path.read_text()) for path in place.iterdir())
    assert kept["decode"]["when"] < kept["train"]["when"]
    speeds |= {"decode": 100.0}
    out = run(capsys, "--quick")[1]
    assert "train          1.00 x the 150" in out and "decode         0.50 x the 200" in out
    assert len(list(place.iterdir())) == 1
    assert "first quick result" in run(capsys, "--quick", "--shape", "smollm2-135m")[1]
    # A measurement of another kind is neither compared nor kept.
    assert "before" not in json.loads(run(capsys, "--json")[1])
    assert len(list(place.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"when": 1, "commit": null}', '{"tokens_per_s": {"train": "x"}}'])
def test_a_kept_file_that_is_none_is_no_result(tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    results = {"train": {"ours_tokens_per_s": 5.0}}
    assert quick.compare(results, quick.read(tmp_path / "kept.json")) is None
    quick.keep(results, tmp_path / "kept.json")
    assert quick.compare(results, quick.read(tmp_path / "kept.json"))["train"]["ratio"] == 1.0


def test_what_an_interrupted_quick_bench_measured_is_kept(measured, capsys):
    speeds, _, place = measured
    speeds["decode"] = None
    status, out, err = run(capsys, "--quick")
    assert status == 130 and out == "" and "interrupted" in err
    (kept,) = (json.loads(path.read_text()) for path in place.iterdir())
    assert set(kept) == {"train"} and kept["train"]["tokens_per_s"] == 100.0


def test_other_work_or_devices_have_another_place(monkeypatch):
    config = bench_workload.shape_config("organism")
    places = [quick.result_path("cpu", 1, "organism", config), quick.result_path("cpu", 2, "organism", config)]
    places.append(quick.result_path("TPU v5 lite", 1, "organism", config))
    monkeypatch.setattr(quick, "WORKLOAD", quick.WORKLOAD + 1)
    places.append(quick.result_path("cpu", 1, "organism", config))
    assert len(set(places)) == 4
    assert all(set(place.name) & set("/ ") == set() for place in places)


def test_quick_is_ours_alone(measured, capsys):
    status, out, err = run(capsys, "--quick", "--against", "transformers")
    assert status == 2 and out == "" and "--quick measures a shape by itself" in err
