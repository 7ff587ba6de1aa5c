"""What the Hugging Face Hub has under a name, in the user's cache, and the directory of a checkpoint."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.base.files import check_inputs
from em_jax.formats.model_config import read_config
from em_jax.model.config import TransformerConfig

FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.json")
ERRORS = {
    "RepositoryNotFoundError": "no such repository, or it needs a login",
    "RevisionNotFoundError": "the repository has no such revision",
    "GatedRepoError": "it is gated: log in and accept its terms",
    "LocalEntryNotFoundError": "no network, and it is not in the Hugging Face cache",
    "OfflineModeIsEnabled": "offline, and it is not in the Hugging Face cache",
}


def fetch(name: str, patterns: Sequence[str]) -> pathlib.Path:
    """The directory of a repository's files in the Hugging Face cache; `name` is owner/name or owner/name@revision.

    Raises UserError that says why it could not be fetched.
    """
    import huggingface_hub

    repository, _, revision = name.partition("@")
    pinned: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), **pinned))
    except Exception as error:  # the hub raises what its transport raises
        kind = type(error).__name__
        raise UserError(ERRORS.get(kind, f"{kind}: {' '.join(str(error).split())[:160]}")) from None


def revision(path: pathlib.Path) -> str:
    """The commit of a directory that `fetch` returned, "" for any other directory."""
    return path.name if path.parent.name == "snapshots" else ""


def find_model(model: str, asked: str = "--model") -> pathlib.Path:
    """The directory of a checkpoint. A Hugging Face id is downloaded into the user's cache, a gs:// address is not.

    Raises UserError where there is no such checkpoint, and for an id whose config.json is not supported.
    """
    directory = runtime.model_directory(model, asked)
    if directory is None:
        fetch_config(model)  # many GB of weights that nothing here can read are not fetched
        return _fetch_model(model, FILES)
    if not runtime.is_bucket(model):
        check_inputs(directory)
        return directory
    try:
        exists = directory.is_dir()
    except Exception as error:  # the bucket's library raises what its transport raises
        reason = " ".join(str(error).split())[:200]
        message = f"{directory} cannot be reached ({reason}); gs:// needs the extra tpu (gcsfs) and read permission"
        raise UserError(message) from None
    if not exists:
        raise UsageError(f"no {directory}: expected a folder with a checkpoint in Hugging Face format")
    return directory


def fetch_config(model: str) -> TransformerConfig:
    """The config of a Hugging Face id, of which config.json alone is downloaded. Raises as `find_model`."""
    return read_config(_fetch_model(model, ("config.json",)))


def _fetch_model(model: str, patterns: Sequence[str]) -> pathlib.Path:
    try:
        return fetch(model, patterns)
    except UserError as error:
        raise UserError(f"{model} could not be fetched from the Hugging Face Hub ({error}); give a directory") from None


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
