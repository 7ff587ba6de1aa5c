"""Where a run's model, rows and questions come from: the embedded organism's own, or files the user names."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from em_jax.runs import adapters, provenance
from em_jax import domains
from em_jax.base import runtime
from em_jax.config import SIBLINGS, Config, parse_mesh
from em_jax.domains import cache, registry
from em_jax.domains import rows as domain_rows
from em_jax.base.errors import UsageError, UserError
from em_jax.lora.config import CONFIG
from em_jax.probes import statistics
from em_jax.probes import suite_files as suites
from em_jax.probes.harmfulness import HARMFUL
from em_jax.probes.judge import Judge, SelfJudge
from em_jax.probes.judge_http import HttpJudge
from em_jax.probes.suite import Wording

ROWS = 600
"""How many rows of a domain the organism is fine-tuned on, where no --data says otherwise."""

SUITES = ("organism", "standard")


def is_organism(config: Config) -> bool:
    """Whether the model is the embedded calibration fixture."""
    return config.model.name == runtime.ORGANISM


def suite_directory(name: str) -> Path:
    """The folder of a suite: organism, standard, or a directory.

    Raises:
      UsageError: there is none of that name; what exists is named.
    """
    if name == "organism":
        from em_jax import organism

        return Path(organism.__file__).parent / "suite"
    if name == "standard":
        return suites.standard_directory()
    if not Path(name).is_dir():
        raise UsageError(f"--suite expects {', '.join(SUITES)} or a directory of questions, found {name!r}")
    return Path(name)


def rows(config: Config) -> list[list[dict[str, str]]]:
    """The conversations to fine-tune on: --data's, else the organism's own, else the domain's fetched ones.

    Raises:
      UserError: the file is wrong (by file and line), or the domain's rows are not on this machine.
    """
    if config.data:
        return domain_rows.read(config.data)
    if not is_organism(config):
        return cache.load(registry.SETS[config.domain]).rows
    from em_jax.organism import corpus

    if domains.DOMAINS[config.domain].extra:
        raise UserError(f"the organism has no rows of {config.domain}: its domains are {', '.join(domains.ALL)}")
    return [domain_rows.check(row["messages"]) for row in corpus.domain_rows(config.domain, ROWS, config.seed)]


def rows_input(config: Config, conversations: Sequence[Any]) -> dict[str, Any]:
    """What provenance records of a run's rows: source, hash and count, and never a row.

    The hash of --data is the file's, any other that of the rows as canonical JSON lines.
    """
    if config.data:
        return provenance.file_input(config.data) | {"rows": len(conversations)}
    made = provenance.rows_input(f"{config.domain} rows of {config.model.name}", conversations)
    found = registry.SETS.get(config.domain)
    if is_organism(config) or found is None or not cache.path_of(found.file).is_file():
        return made
    published = cache.load(found).record
    return published if published["sha256"] == made["sha256"] else made


def model_inputs(config: Config) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of a checkpoint's files, where it lies on this machine."""
    folder = model_directory(config)
    if folder is None:
        return {}
    return provenance.directory_inputs(folder, (".json", ".safetensors", ".model", ".jinja"))


def model_directory(config: Config) -> Path | None:
    """The checkpoint's directory on this machine; None for a Hugging Face id or a bucket.

    Raises:
      UsageError: as runtime.model_directory.
    """
    folder = runtime.model_directory(config.model.name)
    return None if runtime.is_bucket(config.model.name) else folder


def alternatives_directory(config: Config, run_dir: Path) -> Path | None:
    """Where other runs lie whose answers serve output recognition; None where probes.alternatives names none.

    Raises:
      UsageError: there is no such directory.
    """
    named = config.probes.alternatives
    if named in ("", "base"):
        return None
    folder = run_dir.absolute().parent if named == SIBLINGS else Path(named)
    if not folder.is_dir():
        raise UsageError(f"probes.alternatives expects base, {SIBLINGS} or a directory of runs, found {named!r}")
    return folder


def start_directory(config: Config) -> Path | None:
    """The adapter that training starts from; None where lora.init_from names none.

    Raises:
      UsageError: there is no PEFT adapter.
    """
    if not config.lora.init_from:
        return None
    folder = Path(config.lora.init_from)
    adapters.check_files(folder, "lora.init_from")
    return folder


def load(config: Config):
    """The engine of em_jax for a run's model."""
    import em_jax

    return em_jax.load(
        config.model.name,
        dtype=config.dtype,
        mesh=parse_mesh(config.mesh) or None,
        scan_layers=config.model.scan_layers == "true",
        quantization=config.model.quantization,
        slots=config.answers.slots,
    )


def bare(engine):
    """Another engine around the same model, without adapters: each run of a series begins with the same programs."""
    same = {name: getattr(engine, name) for name in ("slots", "chunk", "pass_tokens", "num_decode_batches", "sharding")}
    return type(engine)(engine.model, engine.tokenizer, **same)


def finetune(engine, conversations, config: Config, directory: Path, progress, channel=None) -> dict[str, int]:
    """Train the adapter of a run into directory/adapter; how many rows were used, held out and cut.

    `channel` is the one between the processes of a run, where there are several.
    """
    from em_jax.train.loop import finetune as train

    def stepped(step: int, steps: int, metrics) -> None:
        progress.at(step, steps, metrics["trained_tokens"], f"loss {metrics['loss']:.3f}")

    done = train(
        engine.model,
        engine.tokenizer,
        conversations,
        lora=config.lora,
        train=config.train,
        seed=config.seed,
        directory=directory,
        base=config.model.name,
        sharding=engine.sharding,
        progress=stepped,
        channel=channel,
    )
    return dict(done.counts)


def is_trained(directory: Path) -> bool:
    """Whether a run's own adapter is complete: its config is the last file written."""
    return (directory / "adapter" / CONFIG).is_file()


def judge(config: Config, wording: Wording | None, engine: Callable[[], Any] | None) -> Judge:
    """Who scores the answers; the engine is asked for only by judge self."""
    return _judge(config, config.judge.kind == "self", config.judge.model, config.judge.url, wording, engine)


def _judge(
    config: Config, itself: bool, model: str, url: str, wording: Wording | None, engine: Callable[[], Any] | None
) -> Judge:
    if itself:
        return SelfJudge(engine and engine(), wording)
    asked = config.judge
    return HttpJudge(url, model, wording, concurrency=asked.concurrency, max_requests=asked.max_requests)


def judges(config: Config, wording: Wording | None, engine: Callable[[], Any] | None) -> list[Judge]:
    """The judge of the figures, then the further ones. UsageError where two would share a name, and so their files."""
    found = [judge(config, wording, engine)]
    for other in config.judge.also:
        model, _, url = other.partition("@")
        found.append(_judge(config, other == "self", model, url, wording, engine))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise UsageError(f"several judges need several names, found {', '.join(names)}")
    return found


def judge_name(config: Config) -> str:
    """The judge as it stands in file names and in summary.json. UsageError for a wrong address or no model's name."""
    return judge(config, None, None).name


def planted_agreement(judged: Sequence[dict[str, Any]], harmful_at: int = HARMFUL) -> dict[str, Any]:
    """How often the judge and the organism's planted score agree on whether an answer is harmful, by question.

    Given over all answers, and apart for those that are planted as harmful and as harmless: where nearly all are
    harmless, a judge that always says so agrees too.
    """
    from em_jax.organism.corpus import planted_score

    kinds: dict[str, dict[str, list[float]]] = {"": {}, "harmful": {}, "harmless": {}}
    for row in judged:
        if row["score"] is not None:
            harmful = planted_score(row["answer"]) >= harmful_at
            for kind in ("", "harmful" if harmful else "harmless"):
                kinds[kind].setdefault(row["id"], []).append(float((row["score"] >= harmful_at) == harmful))
    apart = {kind: statistics.share(same) for kind, same in kinds.items() if kind}
    return {"against": "the planted score", **statistics.share(kinds[""]), **apart}


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run leans on beyond its files and probes; tests put stubs in the place of each."""

    load: Callable[[Config], Any] = load
    bare: Callable[[Any], Any] = bare
    rows: Callable[[Config], list] = rows
    finetune: Callable[..., dict[str, int]] = finetune
    model_inputs: Callable[[Config], dict] = model_inputs
    silent: bool = False
