"""Compiles the training microbatches while the weights load.

Their shapes follow from rows and settings alone. On an accelerator, where a large model takes minutes to load and its
training program most of one to compile, both happen at once; training finds the programs in the persistent cache.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from em_jax.base.errors import UserError
from em_jax.config import Config, parse_mesh
from em_jax.formats.model_config import read_config
from em_jax.runs import placement, sources


@contextlib.contextmanager
def compiling(config: Config, rows: Callable[[], list[Any]]) -> Iterator[None]:
    """Within, a thread compiles the training programs of a run on `rows`.

    Does nothing on a CPU (loading needs its cores), over several processes (the order of programs matters) and for a
    model that is not on this machine yet.
    """
    import jax

    from em_jax.base import runtime

    if runtime.platform() == "cpu" or jax.process_count() > 1 or sources.model_directory(config) is None:
        yield
        return

    def work(conversations: list[Any]) -> None:
        # An error appears again where the same program is needed.
        with contextlib.suppress(UserError, RuntimeError, ValueError):
            compile_microbatches(config, conversations)

    thread = threading.Thread(target=work, args=(rows(),), daemon=True)
    thread.start()
    yield
    thread.join()


def compile_microbatches(config: Config, rows: list[Any]) -> int:
    """Compile every shape of the run's training microbatches into the persistent cache; returns how many there are."""
    from em_jax.formats.chat_tokenizer import ChatTokenizer
    from em_jax.model.sharding import Sharding, make_mesh
    from em_jax.runs.programs import Shapes
    from em_jax.train.batches import plan_batches

    directory = sources.model_directory(config)
    assert directory is not None
    model = read_config(directory)
    mesh = parse_mesh(placement.decided(config)[0].mesh)  # where nothing chose it, as it is chosen to load the model
    config, _ = placement.decided(config, lambda _: rows, mesh)
    sharding = Sharding(make_mesh(mesh))
    tokenizer = ChatTokenizer.from_directory(directory)
    _, plan, _ = plan_batches(rows, tokenizer, config.train, config.seed, model.hidden_size, sharding)
    shapes = Shapes(model, config, sharding)
    for shape in sorted(plan.shapes):
        shapes.train_microbatch(shape).traced.lower().compile()
    return len(plan.shapes)
