"""Five AdamW steps against torch and peft on the same unpadded examples: loss, and the adapter's change.

The tiny model runs always. EM_JAX_REAL_MODEL names a directory with a real checkpoint in Qwen2 format (0.1 to 1 billion
parameters), EM_JAX_REAL_ROWS a JSONL file of {"messages": [...]} rows to train it on; without them those tests are
skipped.
"""

import itertools
import json

import numpy as np
import pytest
import safetensors.numpy
import tiny

from em_jax.base.files import read_rows
from em_jax.domains.rows import read
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.checkpoint import load_model
from em_jax.formats.peft import TENSORS, save_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.sharding import UNSHARDED, Sharding, make_mesh
from em_jax.train.batches import Example, step_indices
from em_jax.train.config import TrainConfig
from em_jax.train.loop import finetune

LOSS_BAR, CHANGE_BAR = 1e-4, 1e-3


def train_reference(model, adapter, examples, steps, train: TrainConfig):
    """(losses, tensors by PEFT's names) of a plain loop in torch: example by example, no padding, token-mean a step."""
    torch, transformers = tiny.references()
    peft = pytest.importorskip("peft")
    wrapped = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True).train()
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=train.learning_rate, betas=(train.beta1, train.beta2), eps=train.eps, weight_decay=0.01
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, train.warmup_steps, len(steps))
    losses = []
    for step in steps:
        places = sum(sum(examples[i].mask[1:]) for i in step)
        total = 0.0
        for i in step:
            ids, mask = torch.tensor(examples[i].ids), torch.tensor(examples[i].mask)
            labels = torch.where(mask, ids, -100)[1:]
            found = wrapped(ids[None], use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(found, labels, ignore_index=-100, reduction="sum") / places
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, {key: value.numpy() for key, value in peft.get_peft_model_state_dict(wrapped).items()}


def compare(model, reference, examples, rows, tokenizer, lora, train, adapter, tmp_path, sharding=UNSHARDED):
    """(largest loss difference, the adapter's deviation as a share of its change's norm) after training both."""
    steps = step_indices(len(examples), train, 0)
    assert len(steps) == 5
    where = {"directory": tmp_path / "run", "base": str(adapter), "sharding": sharding}
    finetune(model, tokenizer, rows, lora=lora, train=train, seed=0, **where)
    losses, theirs = train_reference(reference, adapter, examples, steps, train)
    ours = safetensors.numpy.load_file(tmp_path / "run" / "adapter" / TENSORS)
    start = safetensors.numpy.load_file(adapter / TENSORS)
    metrics = read_rows(tmp_path / "run" / "train" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5]
    assert metrics[0]["lr"] == 0
    assert ours.keys() == theirs.keys() == start.keys()

    def norm(one, other):
        return sum(float(np.sum((one[key].astype(np.float64) - other[key]) ** 2)) for key in start) ** 0.5

    apart = max(abs(row["loss"] - loss) for row, loss in zip(metrics, losses, strict=True))
    return apart, norm(ours, theirs) / norm(theirs, start)


PLAIN = LoraConfig(rank=4, alpha=8)
SETTINGS = {
    "fresh": ({}, PLAIN, False),
    "plain_alpha": ({}, LoraConfig(rank=4, alpha=8, rslora=False, rank_pattern={"up_proj": 2}), True),
    "some_layers": ({}, LoraConfig(rank=3, alpha=6, layers_to_transform=(1,), targets=("q_proj", "down_proj")), True),
    "llama": (tiny.LLAMA, PLAIN, True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_five_steps_on_a_tiny_model(name, tmp_path):
    five_steps(*SETTINGS[name], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one device", "eight devices"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_five_steps_of_every_architecture(name, mesh, tmp_path):
    five_steps(tiny.FAMILIES[name], PLAIN, True, tmp_path, Sharding(make_mesh(mesh)) if mesh else UNSHARDED)


def five_steps(changes, lora, warm, tmp_path, sharding=UNSHARDED):
    """Trains the tiny model with these changes to its config here and in peft, and holds the two to the bars."""
    directory = tiny.write_checkpoint(tmp_path / "base", **changes)
    model = load_model(directory, stacked=sharding is not UNSHARDED, sharding=sharding)
    reference = tiny.reference_model(directory)
    # Either way training begins from the directory both read: B is zero in a fresh adapter only.
    start = tiny.random_adapter(model.config, lora, spread=0.1 if warm else 0.0)
    save_adapter(tmp_path / "start", start, lora, model.config, "tiny")
    train = TrainConfig(learning_rate=1e-3, warmup_steps=2, batch_size=4, epochs=1)
    examples = tiny.examples(18)  # the last step has two
    started = LoraConfig(init_from=str(tmp_path / "start"))
    apart, change = compare(
        model, reference, examples, examples, tiny.GivenExamples, started, train, tmp_path / "start", tmp_path, sharding
    )
    print(f"loss apart by {apart:.1e}, change deviates by {change:.1e} of its norm")
    assert apart < LOSS_BAR
    assert change < CHANGE_BAR


def test_five_steps_on_a_real_model(tmp_path):
    directory = tiny.from_environment("EM_JAX_REAL_MODEL", "a real checkpoint to train against peft")
    path = tiny.from_environment("EM_JAX_REAL_ROWS", "real rows to train it on")
    tokenizer = ChatTokenizer.from_directory(directory)
    encoded = ((row, Example(*tokenizer.example(row))) for row in read(path))
    chosen = list(itertools.islice(((row, each) for row, each in encoded if len(each.ids) < 256), 10))
    rows, examples = [row for row, _ in chosen], [each for _, each in chosen]
    model, reference = load_model(directory, stacked=True), tiny.reference_model(directory)
    lora = LoraConfig(rank=8, alpha=16)
    start = tiny.random_adapter(model.config, lora, spread=0.0)
    save_adapter(tmp_path / "start", start, lora, model.config, str(directory))
    train = TrainConfig(learning_rate=1e-4, warmup_steps=2, batch_size=2)
    started = LoraConfig(init_from=str(tmp_path / "start"))
    apart, change = compare(model, reference, examples, rows, tokenizer, started, train, tmp_path / "start", tmp_path)
    written = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert written["r"] == 8
    print(f"real model: loss apart by {apart:.1e}, change deviates by {change:.1e} of its norm")
    assert apart < LOSS_BAR
    assert change < 2e-2
