"""From the name of a model to the files of its checkpoint."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from em_jax.base import runtime
from em_jax.base.errors import UserError

FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.json")


def find_model(model: str) -> pathlib.Path:
    """The directory of a checkpoint: a Hugging Face id is fetched into the user's cache, a gs:// address is not.

    Raises UserError if there is none.
    """
    directory = runtime.model_directory(model)
    if directory is not None:
        if runtime.is_bucket(model):
            _check_bucket(directory)
        return directory
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(model, allow_patterns=list(FILES)))
    except Exception as error:  # the hub raises what its transport raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{model} could not be fetched from the Hugging Face Hub ({reason}); give a directory"
        ) from None


def _check_bucket(directory: pathlib.Path) -> None:
    try:
        found = directory.is_dir()
    except Exception as error:  # a bucket raises what its client library raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory} cannot be reached ({reason}); gs:// needs the extra tpu (gcsfs) and leave to read there"
        ) from None
    if not found:
        raise UserError(f"no {directory}: expected a folder with a checkpoint in Hugging Face format")


@contextlib.contextmanager
def local_files(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A checkpoint's directory as the tokenizer's library needs it: on this machine. The weights are left out."""
    if isinstance(directory, pathlib.Path):
        yield directory
        return
    with tempfile.TemporaryDirectory() as near:
        for path in directory.iterdir():
            if any(path.match(pattern) for pattern in FILES) and path.suffix != ".safetensors":
                (pathlib.Path(near) / path.name).write_bytes(path.read_bytes())
        yield pathlib.Path(near)
