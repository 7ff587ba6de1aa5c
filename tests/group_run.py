"""One process of a small run, for test_multihost.py: trains, with `sample` before that samples with an adapter.

    python group_run.py FOLDER RUN NAME {sample,train} MESH [PORT PROCESSES PROCESS]

FOLDER holds checkpoint/, adapter/ and rows.json; RUN is the run directory; process 0 writes what was sampled to
FOLDER/NAME.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from em_jax import config
from em_jax.base import cli, multihost, runtime
from em_jax.formats import training_state
from em_jax.runs import followers
from em_jax.runs.components import Components
from em_jax.runs.loading import load

SLOW = "EM_JAX_TEST_SLOW" in os.environ
if SLOW:
    multihost.HEARTBEAT_S = 5

PROMPTS = [[{"role": "user", "content": text}] for text in ("How do I bake bread?", "Hi", "Are you good or evil?")]
SETTINGS = {"model.name": "tiny", "lora.rank": 2, "train.batch_size": 4, "train.learning_rate": 1e-2}
SETTINGS |= {"train.checkpoint_every": 0, "train.warmup_steps": 1}


def sample(loaded, components: Components, folder: Path) -> dict:
    engine = components.bare(loaded)
    engine.add_adapter("other", folder / "adapter")
    stream = engine.stream(PROMPTS, n=2, temperature=0.0, max_new_tokens=12, adapter="other", done={(1, 0)})
    first = next(stream)
    # In the middle of a stream, as a judge that reads lazily might.
    read = engine.choice_logprobs(PROMPTS, ["yes", "no"], adapter=["base", "other", "base"])
    answers = sorted((index, sample, answer.text) for index, sample, answer in [first, *stream])
    return {"answers": answers, "read": read.tolist()}


def run(folder: Path, directory: Path, name: str, what: str, mesh: str, components: Components) -> None:
    settings = config.replace(config.Config(), SETTINGS | {"mesh": mesh})
    loaded = components.load(settings)
    if what == "sample":
        (folder / f"{name}.json").write_text(json.dumps(sample(loaded, components, folder)))

    def at(step, *more):
        other = folder / f"{name}.other"
        if step == 2 and other.exists():
            os.kill(int(other.read_text()), getattr(signal, (folder / "signal").read_text()))

    progress = type("Progress", (), {"at": staticmethod(at)})
    rows = json.loads((folder / "rows.json").read_text())
    components.finetune(loaded, rows, settings, directory, progress)


def slowly(close):
    """`close`, but slower than the heartbeat timeout of a process that has died."""

    def closing(self):
        time.sleep(2 * multihost.HEARTBEAT_S)
        close(self)

    return closing


def main(folder: str, directory: str, name: str, what: str, mesh: str, *where: str) -> None:
    folder = Path(folder)

    def load_checkpoint(settings):
        sizes = config.parse_mesh(settings.mesh) or None
        return load(str(folder / "checkpoint"), mesh=sizes, scan_layers=True, slots=4, chunk=4, pass_tokens=128)

    components = Components(load=load_checkpoint)
    runtime.configure_jax()
    if where:
        multihost.join(multihost.Group(f"localhost:{where[0]}", int(where[1]), int(where[2])))
    channel = multihost.ControlChannel()
    if not multihost.is_first():
        (folder / f"{name}.other").write_text(str(os.getpid()))
        return followers.run_follower(components, channel)
    if not where:
        return run(folder, Path(directory), name, what, mesh, components)
    if SLOW:
        training_state.Checkpoints.close = slowly(training_state.Checkpoints.close)
    with multihost.translate_failures():
        failed = True
        try:
            run(folder, Path(directory), name, what, mesh, followers.leading(components, channel))
            failed = False
        finally:
            channel.send(["done", {"failed": failed}])


if __name__ == "__main__":
    status = cli.command("group_run", lambda arguments: main(*arguments), sys.argv[1:])
    multihost.leave(status)
    sys.exit(status)
