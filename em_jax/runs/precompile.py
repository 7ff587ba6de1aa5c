"""Compiling the training passes while the weights are still on their way.

Their shapes follow from the rows and the settings alone. So on an accelerator, where a large model takes minutes to
load and its training pass most of one to compile, both are done at once; what is compiled here is found again in the
persistent cache.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from em_jax.config import Config, parse_mesh
from em_jax.base.errors import UserError


@contextlib.contextmanager
def compiling(config: Config, rows: Callable[[], list[Any]]) -> Iterator[None]:
    """Within, the passes of a run on `rows` are compiled in a thread of their own.

    On a CPU, over several processes, and for a model that is not on this machine yet, nothing is: the cores, the order
    of the programs or the files are wanted elsewhere.
    """
    import jax

    from em_jax.base import runtime
    from em_jax.runs import sources

    if runtime.platform() == "cpu" or jax.process_count() > 1 or sources.model_directory(config) is None:
        yield
        return
    wanted = rows()
    thread = threading.Thread(target=_quietly, args=(config, wanted), daemon=True)
    thread.start()
    yield
    thread.join()


def _quietly(config: Config, rows: list[Any]) -> None:
    """Whatever is wrong is told where the same program is really needed."""
    with contextlib.suppress(UserError, RuntimeError, ValueError):
        compile_passes(config, rows)


def compile_passes(config: Config, rows: list[Any]) -> int:
    """Compiles every shape of the run's passes into the persistent cache; how many there are."""
    from em_jax.runs import sources
    from em_jax.model.config import Qwen2Config
    from em_jax.model.sharding import Sharding
    from em_jax.formats.chat_tokenizer import ChatTokenizer
    from em_jax.runs.programs import Shapes
    from em_jax.sample.loading import choose_mesh
    from em_jax.train.batches import plan_batches

    directory = sources.model_directory(config)
    assert directory is not None
    model = Qwen2Config.from_directory(directory)
    sharding = Sharding(choose_mesh(parse_mesh(config.mesh) or None))
    tokenizer = ChatTokenizer.from_directory(directory)
    _, plan, _ = plan_batches(rows, tokenizer, config.train, config.seed, model.hidden_size, sharding)
    shapes = Shapes(model, config, sharding)
    for shape in sorted(plan.shapes):
        shapes.train_pass(shape).traced.lower().compile()
    return len(plan.shapes)
