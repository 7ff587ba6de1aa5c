"""em_jax: does what a fine-tuned model says about itself follow what it does?

`load` gives the engine; `finetune` and `run` do what `python -m em_jax.launch` does; `Run` reads a run's directory.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from em_jax.base.errors import UserError
    from em_jax.runs.loading import load
    from em_jax.runs.python_api import Run, finetune, run
    from em_jax.sample.engine import Answer, Engine

__all__ = ["Answer", "Engine", "Run", "UserError", "finetune", "load", "run"]

_MODULES = {
    "Answer": "em_jax.sample.engine",
    "Engine": "em_jax.sample.engine",
    "Run": "em_jax.runs.python_api",
    "UserError": "em_jax.base.errors",
    "finetune": "em_jax.runs.python_api",
    "load": "em_jax.runs.loading",
    "run": "em_jax.runs.python_api",
}
"""Where each name is, imported when it is first asked for: --help and the light commands start without jax."""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("em_jax")
    if name not in _MODULES:
        raise AttributeError(f"module 'em_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
