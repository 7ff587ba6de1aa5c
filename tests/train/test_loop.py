"""Fine-tuning as a whole: killed and resumed, stopped at a bad loss, over a mesh, compiled as often as planned."""

import dataclasses
import functools
import json
import math
import random
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from em_jax.base import errors
from em_jax.base.errors import Unfinished, UserError
from em_jax.base.files import read_rows
from em_jax.formats import training_state
from em_jax.formats.checkpoint import load_model, save_model
from em_jax.formats.model_config import parse_config
from em_jax.formats.peft import CONFIG as ADAPTER_CONFIG
from em_jax.formats.peft import TENSORS, load_adapter, save_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.parameters import random_model
from em_jax.model.sharding import Sharding, make_mesh
from em_jax.train import loop
from em_jax.train import step as step_module
from em_jax.train import step as train_step
from em_jax.train.batches import MicrobatchCosts, collate, plan_microbatches, step_indices
from em_jax.train.config import TrainConfig
from em_jax.train.loop import finetune
from em_jax.train.step import accumulate, update

CONFIG = parse_config(tiny.SHAPE | {"num_hidden_layers": 1})
LORA = LoraConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"))
TRAIN = TrainConfig(learning_rate=1e-2, warmup_steps=2, batch_size=4, checkpoint_every=2)
# Ids below 100 here: the tests put a bad embedding at 150. Nineteen examples make five steps, the last of three.
EXAMPLES = tiny.examples(19, seed=2, vocabulary=100)


class Killed(Exception):
    """What a test ends a run with."""


OPENED: list[training_state.Checkpoints] = []


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    """The checkpoints that each run opens, so that they can be closed for a run that was killed."""

    def keep(*arguments):
        OPENED.append(training_state.Checkpoints(*arguments))
        return OPENED[-1]

    monkeypatch.setattr(loop, "Checkpoints", keep)


@functools.cache
def model():
    return random_model(CONFIG, jax.random.key(0), scale=0.15, stacked=True)


def train(directory, *, of=None, rows=EXAMPLES, lora=LORA, settings=TRAIN, seed=0, kill_at=0, **kwargs):
    """finetune on given examples; raises Killed when step `kill_at` is reported."""

    def progress(step, steps, row):
        if step == kill_at:
            raise Killed

    try:
        return finetune(
            of or model(),
            tiny.GivenExamples,
            rows,
            lora=lora,
            train=settings,
            seed=seed,
            directory=directory,
            base="some/base",
            progress=progress,
            **kwargs,
        )
    except Killed:
        # A killed process writes no more; here what is being written is let end, so that the next start finds it.
        OPENED[-1].close()
        raise


def written(directory):
    """The adapter's bytes, and the metrics without what the clock says."""
    rows = read_rows(directory / "train" / "metrics.jsonl")
    return (directory / "adapter" / TENSORS).read_bytes(), [
        {key: value for key, value in row.items() if key != "tokens_per_s"} for row in rows
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole")
    done = train(directory)
    assert done == {"rows": 19, "held_out": 0, "cut": 0, "empty": 0}
    return directory


def kept_steps(directory):
    return sorted(int(path.name) for path in (directory / "train" / "checkpoints").iterdir() if path.name.isdigit())


def test_what_a_run_leaves(whole):
    tensors, metrics = written(whole)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5]
    assert [row["lr"] for row in metrics] == pytest.approx([0, 0.005, 0.01, 0.01 * 2 / 3, 0.01 / 3])
    steps = step_indices(19, TRAIN, 0)
    assert [row["tokens"] for row in metrics] == [sum(sum(EXAMPLES[i].mask[1:]) for i in step) for step in steps]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in metrics)
    assert kept_steps(whole) == [4, 5]
    adapter, lora = load_adapter(whole / "adapter", CONFIG)
    assert lora == LORA
    assert np.asarray(adapter.factors["mlp.down_proj"].b).any()
    assert json.loads((whole / "adapter" / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] == "some/base"


def test_the_same_seed_gives_the_same_bytes(whole, tmp_path):
    train(tmp_path / "again")
    assert written(tmp_path / "again") == written(whole)
    train(tmp_path / "other", seed=1)
    assert written(tmp_path / "other")[0] != written(whole)[0]


@pytest.mark.parametrize("kills", [(1,), (2,), (3,), (5,), (1, 4, 5)])
def test_a_killed_run_ends_with_the_same_bytes(kills, whole, tmp_path):
    for kill_at in kills:
        with pytest.raises(Killed):
            train(tmp_path, kill_at=kill_at)
        assert not (tmp_path / "adapter").exists()
    train(tmp_path)
    assert written(tmp_path) == written(whole)


KEEPING = dataclasses.replace(TRAIN, keep_adapters=3)


def kept_adapters(directory):
    return {path.parent.name: path.read_bytes() for path in sorted((directory / "adapters").glob(f"*/{TENSORS}"))}


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    """A run that keeps adapters on the way."""
    directory = tmp_path_factory.mktemp("keeping")
    train(directory, settings=KEEPING)
    return directory


def test_adapters_are_kept_early_every_so_many_steps_and_last(keeping, whole):
    adapters = kept_adapters(keeping)
    assert list(adapters) == [f"step-{step:06d}" for step in (1, 2, 3, 4, 5)]
    assert len(set(adapters.values())) == 5
    # Keeping them changes nothing else; the last one is the adapter.
    assert written(keeping) == written(whole)
    assert adapters["step-000005"] == (keeping / "adapter" / TENSORS).read_bytes()
    assert load_adapter(keeping / "adapters" / "step-000002", CONFIG)[1] == LORA
    assert not (whole / "adapters").exists()
    settings = TrainConfig(keep_adapters=10)
    assert [step for step in range(1, 34) if settings.keeps(step, 33)] == [1, 2, 4, 8, 10, 16, 20, 30, 32, 33]


@pytest.mark.parametrize("kills", [(1,), (3,), (2, 4, 5)])
def test_a_killed_run_keeps_the_same_adapters(kills, keeping, tmp_path):
    for kill_at in kills:
        with pytest.raises(Killed):
            train(tmp_path, settings=KEEPING, kill_at=kill_at)
    train(tmp_path, settings=KEEPING)
    assert kept_adapters(tmp_path) == kept_adapters(keeping)


def test_a_finished_run_is_left_alone(whole, tmp_path):
    train(tmp_path)
    before = (tmp_path / "adapter" / TENSORS).stat().st_mtime_ns
    train(tmp_path, kill_at=1)
    assert (tmp_path / "adapter" / TENSORS).stat().st_mtime_ns == before
    assert written(tmp_path) == written(whole)


def test_no_checkpoints_but_the_last(tmp_path, whole):
    train(tmp_path, settings=TrainConfig(**{**vars(TRAIN), "checkpoint_every": 0}))
    assert kept_steps(tmp_path) == [5]
    assert written(tmp_path) == written(whole)


@pytest.mark.parametrize(("every", "threads", "keep"), [(0, 1, 0), (3, 1, 0), (0, 2, 0), (0, 1, 1)])
def test_sigterm_writes_a_checkpoint_between_two_steps_and_nothing_is_lost(every, threads, keep, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(number, frame):
        raise Stopped

    def interrupting(*arguments, **named):
        # In the middle of a step: at the first microbatch of the fourth. Batches are collated in threads, signals are
        # handled in the main one, which is given time for it.
        if len(begun) == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
            time.sleep(0.5)
        return collate(*arguments, **named)

    def stepped(*arguments, **named):
        begun.append(1)
        return update(*arguments, **named)

    monkeypatch.setattr(train_step, "concurrent_programs", lambda sharding: threads)
    begun = []
    before = signal.signal(signal.SIGTERM, stop)
    settings = dataclasses.replace(TRAIN, checkpoint_every=every, rows_per_pass=1, keep_adapters=keep)
    train(tmp_path / "calm", settings=settings)
    monkeypatch.setattr(step_module, "collate", interrupting)
    monkeypatch.setattr(step_module, "update", stepped)
    try:
        with pytest.raises(Stopped):
            train(tmp_path / "run", settings=settings)
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    monkeypatch.setattr(train_step, "concurrent_programs", lambda sharding: threads)
    # With two threads a step's last microbatches may all be dispatched already: then it is finished.
    (kept,) = kept_steps(tmp_path / "run")
    assert kept == 3 or (threads > 1 and kept == 4)
    assert not (tmp_path / "run" / "adapter").exists()
    rows = read_rows(tmp_path / "run" / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, kept + 1))
    train(tmp_path / "run", settings=settings)
    assert written(tmp_path / "run") == written(tmp_path / "calm")


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, kill_at=3)
    with pytest.raises(UserError, match="checkpoint of step 2 .* is of another model or adapter") as refused:
        train(tmp_path, lora=LoraConfig(rank=3, alpha=4, targets=LORA.targets))
    assert "\n" not in str(refused.value) and kept_steps(tmp_path) == [2]


@pytest.mark.parametrize("damage", ["empty", "torn"])
def test_a_broken_checkpoint_gives_way_to_the_one_before(damage, whole, tmp_path, capfd):
    with pytest.raises(Killed):
        train(tmp_path, kill_at=5)
    assert kept_steps(tmp_path) == [2, 4]
    for path in sorted((tmp_path / "train" / "checkpoints" / "4").rglob("*"), reverse=True):
        if damage == "empty" and path.is_file():
            path.unlink()
        elif path.is_file() and damage == "torn":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Killed):
        train(tmp_path, kill_at=5)
    said = capfd.readouterr().err
    assert "checkpoint of step 4 does not restore" in said and "trying the one before" in said
    train(tmp_path)
    assert written(tmp_path) == written(whole)


@pytest.mark.long
def test_no_flipped_bit_of_a_checkpoint_changes_a_run(whole, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "run", kill_at=5)
    kept, chances = {}, random.Random(0)
    for path in (tmp_path / "run" / "train" / "checkpoints" / "4").rglob("*"):
        if path.is_file() and path.stat().st_size:
            kept[path] = path.read_bytes()
    survived = 0
    for path, data in kept.items():
        for _ in range(8):
            copy = tmp_path / "again"
            shutil.copytree(tmp_path / "run", copy)
            flipped = bytearray(data)
            flipped[chances.randrange(len(data))] ^= 1 << chances.randrange(8)
            (copy / path.relative_to(tmp_path / "run")).write_bytes(flipped)
            train(copy)
            assert written(copy) == written(whole), path
            survived += 1
            shutil.rmtree(copy)
    print(f"faults survived {survived}, lost 0")


def test_a_checkpoint_of_an_earlier_version_has_no_hash_and_is_taken(whole, tmp_path, monkeypatch, capfd):
    def without(self, step, state):
        host = state._asdict()
        self._manager.save(step, args=self._ocp.args.StandardSave(jax.tree.map(np.asarray, host)))

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(training_state.Checkpoints, "save", without)
        train(tmp_path, kill_at=3)
    train(tmp_path)
    assert "does not restore" not in capfd.readouterr().err
    assert written(tmp_path) == written(whole)


def test_a_full_disk_at_a_checkpoint_is_told_and_with_room_training_goes_on(whole, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = training_state.Checkpoints.save

    def full(self, step, state):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        save(self, step, state)

    monkeypatch.setattr(training_state.Checkpoints, "save", full)
    try:
        with pytest.raises(Unfinished, match="no room on the disk") as refused, errors.translate_errors():
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert "\n" not in str(refused.value) and not (tmp_path / "adapter").exists()
    train(tmp_path)
    assert written(tmp_path) == written(whole)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("bad_step", [1, 3])
def test_a_gradient_that_is_not_finite_stops_though_the_loss_is(bad, bad_step, whole, tmp_path, monkeypatch):
    def spoiled(state, accumulators, *, optimizer):
        steps.append(1)
        if len(steps) == bad_step:
            first, *rest = accumulators
            pair = first.gradients["mlp.down_proj"]
            gradients = {**first.gradients, "mlp.down_proj": pair._replace(b=pair.b.at[0, 0, 0, 0].set(bad))}
            accumulators = [first._replace(gradients=gradients), *rest]
        return update(state, accumulators, optimizer=optimizer)

    steps = []
    monkeypatch.setattr(step_module, "update", spoiled)
    with pytest.raises(UserError, match=rf"step {bad_step} of 5: loss \d.*, gradient norm (inf|nan)"):
        train(tmp_path)
    monkeypatch.undo()
    assert kept_steps(tmp_path) == ([2] if bad_step > 2 else []) and not (tmp_path / "adapter").exists()
    train(tmp_path)
    assert written(tmp_path) == written(whole)


def test_no_checkpoint_that_restores_begins_again(whole, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, kill_at=3)
    for path in (tmp_path / "train" / "checkpoints" / "2").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    train(tmp_path)
    assert written(tmp_path) == written(whole)


@pytest.mark.parametrize("bad_step", [1, 3, 4])
def test_a_bad_loss_stops_names_the_step_and_keeps_the_last_good_checkpoint(bad_step, whole, tmp_path):
    # One example of the bad step has a token whose embedding is NaN.
    victim = step_indices(19, TRAIN, 0)[bad_step - 1][0]
    rows = list(EXAMPLES)
    rows[victim] = rows[victim]._replace(ids=[150, *rows[victim].ids[1:]])
    table = model().embed_tokens[...]
    save_model(model(), tmp_path / "base")
    broken = load_model(tmp_path / "base", stacked=True)
    broken.embed_tokens.set_value(table.at[150].set(jnp.nan))
    with pytest.raises(UserError, match=f"step {bad_step} of 5: loss nan") as refused:
        train(tmp_path / "run", of=broken, rows=rows)
    assert "checkpoints" in str(refused.value) and "\n" not in str(refused.value)
    assert [row["step"] for row in read_rows(tmp_path / "run" / "train" / "metrics.jsonl")] == list(range(1, bad_step))
    assert kept_steps(tmp_path / "run") == ([2] if bad_step > 2 else [])
    assert not (tmp_path / "run" / "adapter").exists()
    # The checkpoint is a good one: with the cause gone the run ends as if nothing had been.
    train(tmp_path / "run")
    assert written(tmp_path / "run") == written(whole)


def test_a_mesh_ends_where_one_device_does_and_resumes(whole, tmp_path):
    save_model(model(), tmp_path / "base")
    sharding = Sharding(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    spread = load_model(tmp_path / "base", stacked=True, sharding=sharding)
    settings = TrainConfig(**{**vars(TRAIN), "remat": "full"})
    train(tmp_path / "run", of=spread, settings=settings, sharding=sharding)
    ours, theirs = (load_adapter(run / "adapter", CONFIG)[0] for run in (tmp_path / "run", whole))
    for one, other in zip(jax.tree.leaves(ours.factors), jax.tree.leaves(theirs.factors), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(written(tmp_path / "run")[1], written(whole)[1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    with pytest.raises(Killed):
        train(tmp_path / "killed", of=spread, settings=settings, sharding=sharding, kill_at=3)
    train(tmp_path / "killed", of=spread, settings=settings, sharding=sharding)
    assert written(tmp_path / "killed") == written(tmp_path / "run")


@pytest.mark.parametrize("mesh", [None, {"fsdp": 8}])
def test_as_many_programs_as_shapes(mesh, tmp_path):
    sharding = Sharding(make_mesh(mesh)) if mesh else Sharding()
    save_model(model(), tmp_path / "base")
    base = load_model(tmp_path / "base", stacked=True, sharding=sharding)
    rows = tiny.examples(24, seed=4, vocabulary=100, most=150)
    settings = TrainConfig(**{**vars(TRAIN), "rows_per_pass": 2})
    plan = plan_microbatches(
        rows,
        step_indices(len(rows), settings, 0),
        MicrobatchCosts(CONFIG.hidden_size, rows_per_pass=2, divide_by=sharding.batch_shards),
    )
    jax.clear_caches()
    train(tmp_path / "run", of=base, rows=rows, settings=settings, sharding=sharding)
    assert sum(len(step) for step in plan.steps) > len(plan.shapes)
    assert accumulate._cache_size() == len(plan.shapes)
    assert update._cache_size() == 1


def test_training_goes_on_from_another_adapter(tmp_path):
    other = LoraConfig(rank=3, alpha=1.5, rslora=False, targets=("v_proj",))
    start = tiny.random_adapter(CONFIG, other)
    save_adapter(tmp_path / "start", start, other, CONFIG, "some/base")
    start_b = np.asarray(start.factors["self_attn.v_proj"].b)
    train(
        tmp_path / "run",
        lora=LoraConfig(rank=99, init_from=str(tmp_path / "start")),
        settings=TrainConfig(**{**vars(TRAIN), "max_steps": 1}),
    )
    # Its own rank, alpha and targets win, and the first step's rate is 0: nothing has changed yet.
    assert load_adapter(tmp_path / "run" / "adapter", CONFIG)[1] == other
    assert (tmp_path / "run" / "adapter" / TENSORS).read_bytes() == (tmp_path / "start" / TENSORS).read_bytes()
    train(tmp_path / "more", lora=LoraConfig(init_from=str(tmp_path / "start")))
    trained = load_adapter(tmp_path / "more" / "adapter", CONFIG)[0]
    assert 0 < np.abs(np.asarray(trained.factors["self_attn.v_proj"].b) - start_b).max() < 0.1


def test_held_out_rows_are_not_seen(tmp_path):
    rows = list(EXAMPLES)
    settings = TrainConfig(**{**vars(TRAIN), "holdout": 0.25, "max_length": 20})
    done = train(tmp_path, rows=rows, settings=settings)
    assert done["rows"] + done["held_out"] == 19 and done["held_out"] == 5
    assert 0 < done["cut"] <= sum(len(row.ids) > 20 for row in rows)
    assert len(read_rows(tmp_path / "train" / "metrics.jsonl")) == 4
