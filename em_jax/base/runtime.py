"""What a command decides before any work: quiet libraries, the compilation cache, default model, dtype, devices."""

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from em_jax.base import files
from em_jax.base.errors import UsageError, UserError

ORGANISM = "organism"
LARGE = "Qwen/Qwen2.5-32B-Instruct"
GPU_FLAGS = {"xla_gpu_dot_merger_threshold_mb": "0", "xla_gpu_enable_latency_hiding_scheduler": "true"}
"""XLA's flags on an NVIDIA GPU.

Merging matmuls would concatenate the two blocks of the key/value cache and write an int8 weight out in bfloat16; the
scheduler overlaps collectives with arithmetic.
"""

TPU_FLAGS = {
    "xla_tpu_enable_latency_hiding_scheduler": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
"""XLA's flags on a TPU, in LIBTPU_INIT_ARGS: collectives run beside the matmuls that do not wait for them."""


def configure_jax() -> None:
    """Silence libraries, keep freed memory, and keep compiled programs between starts; call it before jax is used.

    XLA's persistent compilation cache is in the user's cache directory unless JAX_COMPILATION_CACHE_DIR, or jax's own
    setting, names another place; a start then takes seconds instead of tens of them.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keep_freed_memory()
    if nvidia_gpus():
        set_compiler_flags(GPU_FLAGS)
    if tpu_chips():
        set_compiler_flags(TPU_FLAGS, "LIBTPU_INIT_ARGS")
    else:
        quiet_libtpu()
    # A CUDA plugin without a driver writes lines of its own when jax is imported; `platform` says the same in one.
    with contextlib.nullcontext() if nvidia_gpus() else native_stderr_dropped():
        import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def native_stderr_dropped() -> Iterator[None]:
    """Within, what is written to the process's stderr is dropped, by libraries in C++ too; exceptions are not."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse; does nothing with another libc.

    Mapping and clearing a pass's memory each time took a fifth of a small model's step. One arena, or each thread keeps
    its own. Blocks from 512 MiB on are given back where glibc can: kept, they are split, and a pass needs new ones.
    """
    m_trim_threshold, m_mmap_threshold, m_mmap_max, m_arena_max = -1, -3, -4, -8  # from malloc.h
    # Another libc has no mallopt, or one that does nothing.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        never = {} if libc.mallopt(m_mmap_threshold, 2**29) else {m_mmap_max: 0}
        for name, value in (never | {m_trim_threshold: 2**31 - 1, m_arena_max: 1}).items():
            libc.mallopt(name, value)


def set_compiler_flags(flags: Mapping[str, str], variable: str = "XLA_FLAGS") -> None:
    """Add flags to a variable that is read once, as jax starts; those that are set there already stay as they are."""
    chosen = os.environ.get(variable, "").split()
    names = {flag.lstrip("-").partition("=")[0] for flag in chosen}
    added = [f"--{name}={value}" for name, value in flags.items() if name not in names]
    os.environ[variable] = " ".join([*chosen, *added])


def nvidia_gpus() -> list[Path]:
    """The device files of this machine's NVIDIA GPUs."""
    return [*Path("/dev").glob("nvidia[0-9]*")]


def tpu_chips() -> list[Path]:
    """The device files of this machine's TPU chips."""
    return [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]


def quiet_libtpu() -> None:
    """Stop libtpu, where it is installed for planning, from looking for a TPU and reporting that there is none.

    Without these settings it also refuses a second process that loads it.
    """
    quiet = {
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


def cache_directory() -> Path:
    """The user's cache directory for this program: $XDG_CACHE_HOME or ~/.cache, then em_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "em_jax"


def platform() -> str:
    """cpu, gpu or tpu, as jax finds it. Raises UserError where jax finds no device it was told to use.

    A plugin for an accelerator that cannot be used is one line on stderr, not jax's traceback.
    """
    import jax

    problems: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR:
            problems.append(" ".join(str(error or record.getMessage()).split())[:160])
        return record.levelno < logging.ERROR

    logger = logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(collect)
    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # jax asserts that a platform that it was told to use exists
        wanted = os.environ.get("JAX_PLATFORMS") or "an accelerator"
        reason = problems[0] if problems else (str(error).splitlines() or ["no reason was given"])[0]
        raise UserError(
            f"jax finds no usable device: expected {wanted}, found none ({reason}); "
            "install its driver, or set JAX_PLATFORMS=cpu"
        ) from error
    finally:
        logger.removeFilter(collect)
    if problems:
        print(f"jax has a plugin for an accelerator but finds none ({problems[0]}); using {backend}", file=sys.stderr)
    return backend


def choose_model(name: str) -> tuple[str, str]:
    """(The model, why it is this one): `name` if not empty, else the organism on a CPU and Qwen2.5-32B elsewhere."""
    if name:
        return name, "named by --model or the settings"
    if platform() == "cpu":
        return ORGANISM, "no --model was given and jax found a CPU only"
    return LARGE, f"no --model was given and jax found an accelerator ({platform()})"


def is_id(name: str) -> bool:
    """Whether a name has the form of a Hugging Face id, owner/name or owner/name@revision."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(identity := name.partition("@")[0])
    except HFValidationError:
        return False
    return identity.count("/") == 1


def without_revision(name: str) -> str:
    """A Hugging Face id without its revision, which is no part of a base's name; other names are unchanged."""
    return name.partition("@")[0] if is_id(name) and not Path(name).expanduser().is_dir() else name


def is_bucket(name: str) -> bool:
    """Whether a name is an address in Google Cloud Storage."""
    return name.startswith("gs://")


def model_directory(name: str, asked: str = "--model") -> Path | None:
    """The directory of a checkpoint; None for a Hugging Face id, which is fetched when the engine is loaded.

    A gs:// address gives an etils.epath.Path, which is not checked. `asked` is what an error calls the name's place.
    Raises UsageError where the name is neither the organism, nor a directory or gs:// address, nor of the form of an
    id.
    """
    if name == ORGANISM:
        return Path(__file__).parent.parent / "organism" / "weights"
    if is_bucket(name):
        from etils import epath

        return epath.Path(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        inner = "" if (folder / "config.json").exists() else files.folders_with(folder, "config.json")
        if not inner and (folder / "adapter_config.json").is_file() and not (folder / "config.json").exists():
            inner = ", but an adapter: name its base here and give the folder with --adapter"
        if inner:
            raise UsageError(f"{asked} expects a checkpoint in Hugging Face format; {folder} has no config.json{inner}")
        return folder
    if is_id(name):
        return None
    raise UsageError(
        f"{asked} expects organism, an existing directory, a gs:// address or a Hugging Face id (owner/name), "
        f"found {name!r}"
    )


def choose_dtype(name: str) -> str:
    """The base's dtype: `name` if not empty, else float32 on a CPU and bfloat16 on an accelerator."""
    return name or ("float32" if platform() == "cpu" else "bfloat16")


def choose_scan(text: str, devices: str = "") -> str:
    """Whether layers are stacked, as "true" or "false"; "auto" is "true" on a TPU. `devices`: by default as found.

    A GPU's scan copies each layer's weights before their matmuls: decoding would move them twice more.
    """
    return text if text != "auto" else str((devices or platform()) == "tpu").lower()
