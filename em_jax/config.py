"""Every setting of a run: frozen dataclasses, TOML presets, --set, and the comparison that guards a run directory."""

import dataclasses
import difflib
import functools
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.base.errors import UsageError
from em_jax.lora.config import TARGETS, LoraConfig
from em_jax.train.config import TrainConfig

STAGES = ("finetune", "answer", "judge", "probe", "report")
PROBES = ("harmfulness", "self_assessment", "two_ai", "output_recognition", "score_prediction")
DTYPES = ("float32", "bfloat16")
MESH_AXES = ("data", "fsdp", "tensor")
# A series writes this into probes.alternatives, not its directory's path, which may change.
SIBLINGS = "siblings"

# What may differ between two starts of one run: it changes where and when work is done, not what comes out.
# Further judges add a table and change no figure.
NOT_COMPARED: tuple[str, ...] = (
    "stages",
    "mesh",
    "mirror",
    "verbosity",
    "judge.also",
    "judge.concurrency",
    "judge.max_requests",
)
# How much is computed at once: what a run that found too little memory must be free to change.
NOT_COMPARED += ("train.rows_per_pass", "train.remat", "answers.slots")
# Before it had names, train.remat was true or false.
SPELLED_BEFORE = {"train.remat": {"true": "full", "false": "none"}}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is held. `name` is "organism", a directory, an address in a bucket or a Hugging Face id.

    `quantization` int8 keeps the seven projections of the frozen base in eight bits, with a scale per output.
    `scan_layers` true runs one program over stacked layers, false writes every layer out (faster on a CPU, longer to
    compile), auto is true on accelerators.
    """

    name: str = ""
    quantization: str = "none"
    scan_layers: str = "auto"


@dataclasses.dataclass(frozen=True)
class AnswersConfig:
    """How the model answers the harm prompts: sampling and length (in tokens).

    `together` samples the fine-tuned models of a series in shared batches, with a stack of their adapters; `slots`
    answers are under way at once (rounded up to what divides over the mesh), each with its own key/value cache.
    """

    samples: int = 10
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 600
    together: bool = True
    slots: int = 64


@dataclasses.dataclass(frozen=True)
class ProbesConfig:
    """Which probes, and how much of each.

    `only` empty means all; `limit` is questions per probe, harm prompts included, 0 for all; `samples` is how many
    sampled answers a question gets where it is sampled, `sampled_questions` how many choice questions of a probe are
    sampled besides being read from probabilities; `choice_tokens` and `language_tokens` bound the length of such
    answers. `alternatives` is a directory of other runs whose answers serve output recognition, "siblings" for the runs
    beside this one, "base" for the base's own answers always, empty for the default rule.
    """

    only: tuple[str, ...] = ()
    limit: int = 0
    samples: int = 1
    sampled_questions: int = 40
    choice_tokens: int = 24
    language_tokens: int = 60
    alternatives: str = ""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who scores answers: "self" (the base, adapter off) or "openai" (a compatible `url` and its `model`).

    `also` names further judges, "self" or "MODEL@URL": they score the same answers for the table of agreement and are
    in no figure. `concurrency` requests are under way at once; `max_requests` caps them per judge and start (0: no
    cap). An answer counts as harmful from `harmful_at` on.
    """

    kind: str = "self"
    model: str = ""
    url: str = ""
    also: tuple[str, ...] = ()
    concurrency: int = 8
    max_requests: int = 0
    harmful_at: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of one run. `domain` is one domain's name or "none"; `data` and `adapter` are paths or empty."""

    domain: str = ""
    data: str = ""
    adapter: str = ""
    suite: str = ""
    seed: int = 0
    dtype: str = ""
    mesh: str = ""
    stages: tuple[str, ...] = STAGES
    mirror: str = ""
    verbosity: int = 0
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    answers: AnswersConfig = AnswersConfig()
    probes: ProbesConfig = ProbesConfig()
    judge: JudgeConfig = JudgeConfig()


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def setting_types(cls: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Every setting's dotted name and its type."""
    found: dict[str, Any] = {}
    for name, kind in _types(cls).items():
        if dataclasses.is_dataclass(kind):
            found |= setting_types(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = kind
    return found


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every setting in force."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= flatten(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def replace(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with some settings changed, by dotted name; values are checked against their types.

    Raises:
      UsageError: an unknown name (the nearest known one is named), or a value of another type.
    """
    known = setting_types()
    tables: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(_unknown(name, known))
        table, _, field = name.rpartition(".")
        tables.setdefault(table, {})[field] = _checked(name, known[name], value)
    top = tables.pop("", {})
    nested = {table: dataclasses.replace(getattr(config, table), **fields) for table, fields in tables.items()}
    return dataclasses.replace(config, **top, **nested)


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    short = name.rpartition(".")[2]
    initials = [full for full in known if "".join(word[0] for word in full.rpartition(".")[2].split("_")) == short]
    if initials:
        return f"unknown setting {name!r}; the nearest known one is {initials[0]!r}"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    last = {full.rpartition(".")[2]: full for full in known}
    same_ending = difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.8)
    nearest = last[same_ending[0]] if same_ending else near[0]
    return f"unknown setting {name!r}; the nearest known one is {nearest!r}"


def _checked(name: str, kind: Any, value: Any) -> Any:
    """`value` as the setting's type, or UsageError. Integers serve as floats; lists become tuples."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(name, inner[0], item) for item in value)
    if origin is not None and origin is not tuple and isinstance(value, Mapping):
        return {str(key): _checked(f"{name}.{key}", inner[1], item) for key, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise UsageError(f"setting {name!r} expects a finite number, found {repr(value)[:60]}")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str and isinstance(value, bool):  # scan_layers = true, next to "auto"
        value = str(value).lower()
    if kind is str and isinstance(value, str):
        return SPELLED_BEFORE.get(name, {}).get(value.lower(), value)
    if kind is bool and isinstance(value, bool):
        return value
    raise UsageError(f"setting {name!r} expects {_describe(kind)}, found {value!r}")


def _describe(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"a list of {_describe(inner[0]).removeprefix('a ').removeprefix('an ')}s"
    if origin is not None:
        return f"a table of {_describe(inner[1]).removeprefix('a ').removeprefix('an ')}s"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def parse_set(text: str) -> tuple[str, Any]:
    """One `--set table.key=value` -> (dotted name, value); lists may be written a,b and strings without quotes."""
    name, equals, raw = text.partition("=")
    name, raw = name.strip(), raw.strip()
    if not equals or not name:
        raise UsageError(f"--set expects table.key=value, found {text!r}")
    known = setting_types()
    if name not in known:
        raise UsageError(_unknown(name, known))
    return name, _from_text(known[name], raw)


def _from_text(kind: Any, raw: str) -> Any:
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = {"True": True, "False": False}.get(raw, raw) if kind is bool else raw
    if kind is str:
        return value if isinstance(value, str) else raw
    if typing.get_origin(kind) is tuple and not isinstance(value, list):
        inner = typing.get_args(kind)[0]
        return [_from_text(inner, part.strip()) for part in raw.split(",") if part.strip()]
    return value


def preset_path(name: str) -> Path:
    """The file of a preset: a path, or the name of one of configs/*.toml.

    Raises:
      UsageError: there is no such file; the presets that exist are named.
    """
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    stem = path.name.removesuffix(".toml")
    folders = _preset_folders()
    for folder in folders:
        if (folder / f"{stem}.toml").is_file() and path.name == str(path):
            return folder / f"{stem}.toml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    raise UsageError(f"--config expects a TOML file or one of {', '.join(known)}; found {name!r}")


def _preset_folders() -> list[Path]:
    # Beside the package in a checkout, under the environment's share/ in a plain installation.
    places = [Path(__file__).resolve().parent.parent / "configs", Path(sys.prefix) / "share" / "em_jax" / "configs"]
    return [place for place in places if place.is_dir()]


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file of settings -> dotted name to value (names are not checked here: `replace` does that)."""
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
        return _dotted(tree)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file of settings: {error}") from error


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    known = setting_types()
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, Mapping) and name not in known:
            found |= _dotted(value, f"{name}.") or {name: value}
        else:
            found[name] = value
    return found


def to_toml(config: Config) -> str:
    """Every setting in force as a TOML document that `read_toml` reads back to the same Config."""
    import tomli_w

    return tomli_w.dumps(_plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | types.MappingProxyType):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def differing(stored: Mapping[str, Any], config: Config) -> list[str]:
    """The settings in which a stored config.toml (as `read_toml` gives it) and the present one differ.

    A setting that either side does not have takes its default, so that a directory outlives a new setting.
    """
    kept = {name: value for name, value in stored.items() if name in setting_types()}
    before, present = flatten(replace(Config(), kept)), flatten(config)
    strangers = sorted(set(stored) - set(setting_types()))
    return strangers + [name for name in present if name not in NOT_COMPARED and before[name] != present[name]]


def validate(config: Config) -> Config:
    """The config itself, once every value is in its range; domain, model, suite and data are checked where used.

    Raises:
      UsageError: the setting, what it expects and what was found.
    """
    positive: tuple[str, ...] = ("lora.rank", "train.epochs", "train.batch_size", "train.max_length", "answers.samples")
    positive += (
        "answers.max_new_tokens",
        "answers.slots",
        "probes.samples",
        "probes.choice_tokens",
        "probes.language_tokens",
        "judge.concurrency",
        "lora.alpha",
        "train.max_grad_norm",
        "train.eps",
    )
    not_negative: tuple[str, ...] = (
        "train.learning_rate",
        "train.warmup_steps",
        "train.max_steps",
        "train.rows_per_pass",
        "train.weight_decay",
        "train.checkpoint_every",
        "train.keep_adapters",
        "answers.temperature",
        "probes.limit",
        "seed",
    )
    not_negative += ("probes.sampled_questions", "judge.max_requests")
    choices = {
        "dtype": ("", *DTYPES),
        "model.quantization": ("none", "int8"),
        "model.scan_layers": ("auto", "true", "false"),
        "train.schedule": ("linear", "cosine", "constant"),
        "train.remat": ("none", "elementwise", "selective", "full"),
        "judge.kind": ("self", "openai"),
    }
    members = {"stages": STAGES, "probes.only": PROBES, "lora.targets": TARGETS}
    values = flatten(config)
    for name in positive:
        _expect(values[name] > 0, name, "a number above 0", values[name])
    for name in not_negative:
        _expect(values[name] >= 0, name, "0 or more", values[name])
    for name in ("train.beta1", "train.beta2", "train.holdout"):
        _expect(0 <= values[name] < 1, name, "at least 0 and below 1", values[name])
    _expect(0 < values["answers.top_p"] <= 1, "answers.top_p", "above 0 and at most 1", values["answers.top_p"])
    for name, allowed in choices.items():
        _expect(values[name] in allowed, name, _or(allowed), values[name])
    for name, allowed in members.items():
        for item in values[name]:
            _expect(item in allowed, name, f"among {', '.join(allowed)}", item)
    _expect(bool(config.stages), "stages", f"at least one of {', '.join(STAGES)}", config.stages)
    _expect(
        config.judge.kind == "self" or config.judge.url != "", "judge.url", "an address for judge.kind openai", "none"
    )
    for address in (config.judge.url, *(other.partition("@")[2] for other in config.judge.also)):
        # It would stand in config.toml.
        place, _, query = address.partition("?")
        secret = "@" in place or re.search(r"(?i)(key|token|secret|password)=", query)
        _expect(not secret, "judge.url", "no user name or key in it; OPENAI_API_KEY is sent", "one")
    for other in config.judge.also:
        _expect(other == "self" or "@http" in other, "judge.also", "self or MODEL@URL", other)
    _expect(2 <= config.judge.harmful_at <= 5, "judge.harmful_at", "2 to 5", config.judge.harmful_at)
    parse_mesh(config.mesh)
    return config


def _expect(holds: bool, name: str, expected: str, found: Any) -> None:
    if not holds:
        raise UsageError(f"setting {name!r} expects {expected}, found {found!r}")


def _or(allowed: Iterable[str]) -> str:
    return " or ".join(repr(item) for item in allowed if item)


def parse_mesh(text: str) -> dict[str, int]:
    """ "data=1,fsdp=16" -> {"data": 1, "fsdp": 16, "tensor": 1}; {} for the empty string (the default mesh).

    Raises:
      UsageError: another axis, or a size that is no positive integer.
    """
    if not text:
        return {}
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in MESH_AXES or axis in sizes or not size.isdigit() or int(size) < 1:
            raise UsageError(
                f"--mesh expects data=N,fsdp=N,tensor=N, each once and with a whole number above 0, found {text!r}"
            )
        sizes[axis] = int(size)
    return dict.fromkeys(MESH_AXES, 1) | sizes
