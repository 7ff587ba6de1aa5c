"""The model that is planned for: a Qwen2.5 by name, or a checkpoint's directory."""

from pathlib import Path

from em_jax.errors import UsageError
from em_jax.model.config import Qwen2Config
from em_jax.model.presets import qwen_config


def model_config(name: str) -> Qwen2Config:
    """The config of "qwen2.5-32b" or of a directory. UsageError for an unknown name."""
    if Path(name).is_dir():
        return Qwen2Config.from_directory(Path(name))
    try:
        return qwen_config(name)
    except UsageError as error:
        raise UsageError(f"--model expects a checkpoint's directory or a Qwen2.5: {error}") from None
