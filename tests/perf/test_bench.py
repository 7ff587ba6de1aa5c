import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from em_jax.base.cli import command
from em_jax.commands import bench
from em_jax.config import Config, replace
from em_jax.formats.checkpoint import save_model
from em_jax.model.config import TransformerConfig
from em_jax.model.parameters import random_model
from em_jax.perf import bench_workload, gpu_table, measuring, tunix_peer
from em_jax.perf.roofline import work_of
from em_jax.runs.chips import CHIPS, Chip
from em_jax.runs.programs import Shapes
from em_jax.train.batches import Example, Shape


@pytest.fixture
def checkpoint(tmp_path):
    config = TransformerConfig(96, 32, 48, 1, 2, 1, 16, tie_word_embeddings=True)
    save_model(random_model(config, jax.random.key(0)), tmp_path)
    return str(tmp_path)


@pytest.fixture
def small(monkeypatch):
    """Few and short examples and prompts, so that a round takes no time."""
    whole = bench_workload.synthetic_steps

    def short(count, vocabulary):
        return [
            [bench_workload.Example(e.ids[:40], e.mask[:30] + [True] * 10) for e in step]
            for step in whole(2, vocabulary)
        ]

    monkeypatch.setattr(bench_workload, "synthetic_steps", short)
    monkeypatch.setattr(bench_workload, "DECODING_ROWS", 3)
    monkeypatch.setattr(bench_workload, "SAMPLES", 2)


def run(capsys, *arguments):
    status = command("em_jax bench", bench.main, arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("peer, package", [("transformers", "peft"), ("tunix", "tunix")])
def test_json_is_one_object_with_paired_figures_of_the_same_work(peer, package, checkpoint, small, capsys):
    pytest.importorskip(package)
    status, out, err = run(
        capsys, "--against", peer, "--model", checkpoint, "--rounds", "1", "--new_tokens", "4", "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    assert set(found) == {"train", "decode", "device", "peak_bytes"}
    for row in (found["train"], found["decode"], found["decode"]["ten_samples"]):
        assert row["ours_tokens_per_s"] > 0 and row["theirs_tokens_per_s"] > 0
        np.testing.assert_allclose(row["ratio"], row["ours_tokens_per_s"] / row["theirs_tokens_per_s"], rtol=0.02)
    assert found["train"]["loss_gap"] < 1e-4
    # Each side in a process of its own, which holds at least its libraries.
    assert found["train"]["ours_peak_bytes"] > 2**26 and found["train"]["theirs_peak_bytes"] > 2**26


@pytest.mark.long
def test_the_table_of_a_gpu_is_written_within_its_minutes(checkpoint, small, capsys, monkeypatch, tmp_path):
    """On a CPU with a tiny shape: every row is there, measured or said not to be."""
    monkeypatch.setattr(gpu_table, "ROUNDS", 1)
    path = tmp_path / "gpu.md"
    arguments = ["--gpu-table", str(path), "--model", checkpoint, "--new_tokens", "4"]
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    text = path.read_text()
    assert text == out and "failed" not in text and "not measured" not in text, text
    for title in ("training, 16 real rows", "| decoding |", "decoding, int8", "ten samples"):
        assert title in text
    status, out, err = run(capsys, *arguments, "--minutes", "0.5")
    assert status == 0 and out.count("not measured") >= 3, err


def test_the_table_of_a_gpu_names_the_checkpoint_that_it_measured(checkpoint, small, capsys, monkeypatch, tmp_path):
    """It said "organism with random weights" of any --model."""
    monkeypatch.setattr(gpu_table, "measure", lambda *_: {"device": "made up"})
    status, out, err = run(capsys, "--gpu-table", str(tmp_path / "gpu.md"), "--model", checkpoint)
    assert status == 0, err
    assert out.startswith(f"Measured on one made up, {checkpoint}, medians") and "random" not in out


@pytest.mark.fast
def test_help_has_plain_per_cent_signs(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    assert "44% of" in " ".join(capsys.readouterr().out.split())


def test_a_peer_that_is_not_installed_is_one_line(checkpoint, small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    for peer, wanted in (("tunix", "pip install google-tunix"), ("transformers", "the extra 'test'")):
        status, out, err = run(capsys, "--against", peer, "--model", checkpoint, "--rounds", "1")
        assert status == 1 and out == "" and wanted in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.fast
def test_rows_for_tunix_are_padded_together():
    ids, mask = tunix_peer.padded([Example([5] * 100, [False] * 60 + [True] * 40), Example([7] * 130, [True] * 130)])
    assert ids.shape == mask.shape == (2, 256) and mask.sum() == 170
    assert (ids[0] == [5] * 100 + [tunix_peer.PAD] * 156).all() and not mask[0, :60].any() and mask[0, 60:100].all()


def test_without_a_peer_only_our_figures_are_given(checkpoint, small, capsys):
    status, out, err = run(capsys, "--model", checkpoint, "--rounds", "1", "--what", "train", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert set(found) == {"train", "device", "peak_bytes"}
    assert found["train"]["theirs_tokens_per_s"] is None and found["train"]["ratio"] is None
    # A device whose peaks nobody has stated.
    assert found["train"]["mfu"] is None and found["train"]["first_round_s"] > 0


def test_a_trace_is_written_and_known_peaks_are_set_against(checkpoint, small, capsys, monkeypatch, tmp_path):
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(CHIPS, kind, Chip(kind, 0, 1e12, 1e11, 0, 1, kind=kind))
    status, out, err = run(
        capsys, "--model", checkpoint, "--rounds", "1", "--new_tokens", "4", "--trace", str(tmp_path / "trace")
    )
    assert status == 0, err
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert measuring.FORMULA in out and "of the memory's bandwidth" in out and kind in out


@pytest.mark.fast
def test_what_training_asks_for_is_what_the_program_multiplies():
    """Against the count over the traced program, which also holds the adapter and masked halves."""
    config = TransformerConfig(160, 64, 96, 3, 4, 2, 16)
    length = 32
    example = bench_workload.Example([1] * length, [True] * length)
    settings = replace(Config(), {"lora.rank": 1, "dtype": "float32", "model.scan_layers": "true"})
    traced = Shapes(config, settings).train_microbatch(Shape(1, length, length)).traced.jaxpr
    # Of the adapter, forward 2 R (inputs + outputs) a token, backward twice that.
    sizes = (64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)
    adapter = 3 * 3 * 2 * length * sum(map(sum, sizes))
    product = 2 * length * length * 64 * 3
    # Seven whole products (the scores again in the backward pass) where six halves are asked for; a place more of loss.
    extra = adapter + 7 * product - 3 * product + 2 * 2 * 64 * 160
    assert work_of(traced).flops == measuring.train_flops(config, [example]) + extra


@pytest.mark.fast
def test_an_int8_base_has_half_the_bytes_to_read(monkeypatch):
    """Its share of the bandwidth was reckoned with bfloat16 weights, nearly twice of what it reads."""
    config = TransformerConfig(160, 64, 96, 3, 4, 2, 16)
    monkeypatch.setitem(CHIPS, "made up", Chip("made up", 0, 1e12, 1e6, 0, 1, kind="made up"))
    shares = {}
    for quantization in ("none", "int8"):
        work = bench_workload.Workload(config, None, [], [[1] * 10] * 4, 8, quantization=quantization)
        results = {"decode": {"ours_tokens_per_s": 400.0}}
        measuring._add_shares(results, work, SimpleNamespace(device_kind="made up"))
        shares[quantization] = results["decode"]["bandwidth_share"]
    # Every layer: queries, keys and values, output, gate, up, down.
    numbers = 3 * 64 * (64 + 2 * 32 + 64 + 3 * 96)
    assert shares["none"] - shares["int8"] == pytest.approx(400 / 4 * numbers / 1e6, abs=1e-3)


@pytest.mark.fast
def test_rounds_alternate_and_the_first_is_not_counted():
    order = []

    def worker(name):
        def work(number):
            order.append((name, number))
            return 10

        return work

    found = measuring.paired_rounds("x", {name: worker(name) for name in ("ours", "theirs")}, 2)
    assert order == [(name, number) for number in range(3) for name in ("ours", "theirs")]
    assert found["rounds"] == 2


def test_synthetic_rows_have_the_lengths_they_claim():
    examples = [example for step in bench_workload.synthetic_steps(250, 4096) for example in step]
    lengths = np.array([len(example.ids) for example in examples])
    share = sum(sum(example.mask) for example in examples) / lengths.sum()
    assert abs(lengths.mean() - 243) < 5 and abs(np.median(lengths) - 225) < 5 and lengths.max() <= 852
    assert abs(np.quantile(lengths, 0.9) - 376) < 12
    assert abs(share - 0.44) < 0.01


@pytest.mark.fast
@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--against", "torch"], ["--against", "transformers", "tunix"]),
        (["--remat", "half"], ["--remat", "selective", "'half'"]),
        (["--what", "training"], ["train, decode"]),
        (["--shape", "tiny"], ["organism", "'tiny'"]),
        (["--shape", "organism", "--model", "x"], ["exclude"]),
        (["--rows", "x.jsonl"], ["--model"]),
        (["--rounds", "0"], ["1 or more"]),
        (["--against", "vllm"], ["--what decode"]),
        (["--gpu-table", "x.md", "--json"], ["--gpu-table"]),
    ],
)
def test_a_wrong_flag_is_one_line_that_says_what_is_expected(arguments, names, capsys):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and all(name in err for name in names)
