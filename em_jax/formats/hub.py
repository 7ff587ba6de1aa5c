"""The directory of a checkpoint, given the name of a model."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError

FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.json")


def find_model(model: str) -> pathlib.Path:
    """The directory of a checkpoint. A Hugging Face id is downloaded into the user's cache, a gs:// address is not.

    Raises UserError where there is no such checkpoint.
    """
    directory = runtime.model_directory(model)
    try:
        if directory is None:
            import huggingface_hub

            return pathlib.Path(huggingface_hub.snapshot_download(model, allow_patterns=list(FILES)))
        exists = not runtime.is_bucket(model) or directory.is_dir()
    except Exception as error:  # the hub and the bucket's library raise what their transport raises
        reason = " ".join(str(error).split())[:200]
        if directory is None:
            message = f"{model} could not be fetched from the Hugging Face Hub ({reason}); give a directory"
        else:
            message = f"{directory} cannot be reached ({reason}); gs:// needs the extra tpu (gcsfs) and read permission"
        raise UserError(message) from None
    if not exists:
        raise UsageError(f"no {directory}: expected a folder with a checkpoint in Hugging Face format")
    return directory


@contextlib.contextmanager
def local_files(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A local directory with the checkpoint's files, without weights, as the tokenizer's library needs it."""
    if isinstance(directory, pathlib.Path):
        yield directory
        return
    with tempfile.TemporaryDirectory() as local:
        for path in directory.iterdir():
            if any(path.match(pattern) for pattern in FILES) and path.suffix != ".safetensors":
                (pathlib.Path(local) / path.name).write_bytes(path.read_bytes())
        yield pathlib.Path(local)
