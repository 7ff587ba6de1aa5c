"""em_jax: does what a fine-tuned model says about itself follow what it does?

`em_jax.load(model, adapter=None, dtype=None, mesh=None)` gives the engine; `python -m em_jax.launch` runs the
experiment.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from em_jax.runs.finished import FinishedRun as Run
    from em_jax.runs.loading import load

__all__ = ["Run", "load"]


def __dir__() -> list[str]:
    # What is imported late is completed too.
    return sorted({*globals(), *__all__, "__version__"})


def __getattr__(name: str) -> Any:
    # jax is imported when the engine is first asked for, so that --help and the light commands start at once.
    if name == "load":
        from em_jax.runs.loading import load

        return load
    if name == "Run":
        from em_jax.runs.finished import FinishedRun

        return FinishedRun
    if name == "__version__":
        from importlib import metadata

        return metadata.version("em_jax")
    raise AttributeError(f"module 'em_jax' has no attribute {name!r}")
