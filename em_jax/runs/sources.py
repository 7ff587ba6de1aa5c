"""Where a run's model, rows, questions and judges come from: the organism's own, or what the user names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax import domains
from em_jax.base import files, runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.config import SIBLINGS, Config
from em_jax.domains import cache, mixing, registry
from em_jax.domains import rows as domain_rows
from em_jax.formats import hub
from em_jax.lora.config import CONFIG
from em_jax.probes import statistics
from em_jax.probes import suite_files as suites
from em_jax.probes.judge import Judge, SelfJudge
from em_jax.probes.judge_http import HttpJudge
from em_jax.runs import adapters, provenance

ROWS = 600
"""How many rows of a domain the organism is fine-tuned on without --data."""


def is_organism(config: Config) -> bool:
    """Whether the model is the embedded calibration fixture."""
    return config.model.name == runtime.ORGANISM


def suite_directory(name: str) -> Path:
    """The folder of a suite: organism, standard, or a directory. UsageError where there is none of that name."""
    if name == "organism":
        return Path(__file__).parent.parent / "organism" / "suite"
    if name == "standard":
        return suites.standard_directory()
    if not Path(name).is_dir():
        raise UsageError(f"--suite expects organism, standard or a directory of questions, found {name!r}")
    files.check_inputs(name)
    return Path(name)


def rows(config: Config) -> list[list[dict[str, Any]]]:
    """The conversations to fine-tune on: --data's, else the organism's own, else the domain's fetched ones, mixed.

    Raises UserError where a file is wrong (by file and line), a domain's rows are not on this machine or are too
    few to mix.
    """
    own = _rows_of(config, config.domain, config.data, "--data")
    if not config.mix:
        return own
    name, share = settings.parse_mix(config.mix)
    known = name in domains.DOMAINS
    return mixing.mix(own, _rows_of(config, name, "" if known else name, "mix"), share, config.seed)


def _rows_of(config: Config, domain: str, data: str, setting: str) -> list[list[dict[str, Any]]]:
    if data:
        files.check_input(data, setting)
        return domain_rows.read(data, config.format)
    if not is_organism(config):
        return cache.load(registry.SETS[domain])[0]
    from em_jax.organism import answers

    if domains.DOMAINS[domain].extra:
        raise UserError(f"the organism has no rows of {domain}: its domains are {', '.join(domains.ALL)}")
    return [domain_rows.check(row["messages"]) for row in answers.domain_rows(domain, ROWS, config.seed)]


def rows_input(config: Config, conversations: Sequence[Any]) -> dict[str, Any]:
    """What provenance records of a run's rows: source, hash and count, and never a row.

    The hash of --data alone is the file's, any other that of the rows as canonical JSON lines.
    """
    if config.mix:
        return provenance.rows_input(f"{config.data or config.domain} mixed with {config.mix}", conversations)
    if config.data:
        return provenance.file_input(config.data) | {"rows": len(conversations)}
    entry = provenance.rows_input(f"{config.domain} rows of {config.model.name}", conversations)
    dataset = registry.SETS.get(config.domain)
    if is_organism(config) or dataset is None or not cache.path_of(dataset.file).is_file():
        return entry
    _, published = cache.load(dataset)
    return published if published["sha256"] == entry["sha256"] else entry


def model_inputs(config: Config) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of a checkpoint's files; {} for a bucket.

    A Hugging Face id is fetched, where a stage of this start needs the model.
    """
    folder = model_directory(config)
    if folder is None and not runtime.is_bucket(config.model.name) and needs_model(config):
        folder = hub.find_model(config.model.name)
    if folder is None:
        return {}
    files.check_inputs(folder)
    return provenance.directory_inputs(folder, (".json", ".safetensors", ".model", ".jinja"))


def needs_model(config: Config) -> bool:
    """Whether a stage of this start loads the model."""
    judged = "judge" in config.stages and (config.judge.kind == "self" or "self" in config.judge.also)
    return judged or bool({"finetune", "answer", "probe"} & set(config.stages))


def pinned(config: Config, directory: Path) -> Config:
    """The settings with the model, where it is a Hugging Face id, at the revision that the run began with."""
    return settings.replace(config, {"model.name": at_revision(config.model.name, "model", directory)})


def at_revision(name: str, kind: str, directory: Path) -> str:
    """A Hugging Face id at the revision on a run's record; `kind` is model or adapter. Other names come back."""
    revision = provenance.revisions(directory).get(kind)
    known = isinstance(revision, str) and revision and runtime.is_id(name) and "@" not in name
    return f"{name}@{revision}" if known and not Path(name).expanduser().is_dir() else name


def model_directory(config: Config) -> Path | None:
    """The checkpoint's directory on this machine; None for a Hugging Face id or a bucket. Raises as `runtime` does."""
    folder = runtime.model_directory(config.model.name)
    return None if runtime.is_bucket(config.model.name) else folder


def model_config(config: Config, fetch: bool = False) -> Any:
    """The model's sizes from its files, else from the name of a known model, else None.

    With `fetch` the config.json of any other Hugging Face id is downloaded, where a stage loads the model.
    """
    from em_jax.formats.model_config import named_config, read_config

    name = config.model.name
    if runtime.is_bucket(name):
        return None
    folder = model_directory(config) or hub_cache(name, "config.json")
    if folder is not None:
        return read_config(folder)
    try:
        return named_config(name)
    except UserError:
        return hub.fetch_config(name) if fetch and needs_model(config) else None


def hub_cache(identity: str, file: str) -> Path | None:
    """The folder of the Hugging Face cache that has this file of a repository, or None."""
    import huggingface_hub

    repository, _, revision = identity.partition("@")
    path = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
    return Path(path).parent if isinstance(path, str) else None


def alternatives_directory(config: Config, run_dir: Path) -> Path | None:
    """The directory of runs that probes.alternatives names, if it names one. UsageError where there is none."""
    name = config.probes.alternatives
    if name in ("", "base"):
        return None
    folder = run_dir.absolute().parent if name == SIBLINGS else Path(name)
    # The folder of a run that has not begun need not be there.
    if name != SIBLINGS and not folder.is_dir():
        raise UsageError(f"probes.alternatives expects base, {SIBLINGS} or a directory of runs, found {name!r}")
    return folder


def start_directory(config: Config) -> Path | None:
    """The adapter that training starts from, lora.init_from; None without one. UsageError where it is no adapter."""
    if not config.lora.init_from:
        return None
    folder = Path(config.lora.init_from)
    adapters.check_files(folder, "lora.init_from")
    return folder


def is_trained(directory: Path) -> bool:
    """Whether a run's own adapter is complete: its config is the last file written."""
    return (directory / "adapter" / CONFIG).is_file()


def judges(config: Config, wording: Any = None, engine: Callable[[], Any] | None = None) -> list[Judge]:
    """The judge of the figures, then those of judge.also; `engine` is called for a judge "self" alone.

    Without wording and engine they have names and can describe themselves. Raises UsageError for a wrong address, no
    model's name, or two judges of one name, which would share their files.
    """
    settings = config.judge
    servers = [None if settings.kind == "self" else (settings.model, settings.url)]
    servers += [None if other == "self" else other.partition("@")[::2] for other in settings.also]
    limits: dict[str, Any] = {"concurrency": settings.concurrency, "max_requests": settings.max_requests}
    every: list[Judge] = [
        HttpJudge(server[1], server[0], wording, **limits) if server else SelfJudge(engine and engine(), wording)
        for server in servers
    ]
    names = [judge.name for judge in every]
    if len(set(names)) < len(names):
        raise UsageError(f"several judges need several names, found {', '.join(names)}")
    return every


def judge_name(config: Config) -> str:
    """The judge as it stands in file names and in summary.json. Raises as `judges`."""
    return judges(config)[0].name


def planted_agreement(rows: Sequence[dict[str, Any]], harmful_at: int) -> dict[str, Any]:
    """How often the judge and the organism's planted score agree on whether an answer is harmful, by question.

    Also apart for answers planted as harmful and as harmless: where nearly all are harmless, a judge that always says
    so agrees too.
    """
    from em_jax.organism.answers import planted_score

    kinds: dict[str, dict[str, list[float]]] = {"": {}, "harmful": {}, "harmless": {}}
    for row in rows:
        if row["score"] is not None:
            harmful = planted_score(row["answer"]) >= harmful_at
            for kind in ("", "harmful" if harmful else "harmless"):
                kinds[kind].setdefault(row["id"], []).append(float((row["score"] >= harmful_at) == harmful))
    by_kind = {kind: statistics.share(same) for kind, same in kinds.items() if kind}
    return {"against": "the planted score", **statistics.share(kinds[""]), **by_kind}
