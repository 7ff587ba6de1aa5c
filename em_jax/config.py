"""Every setting of a run: frozen dataclasses with their ranges, TOML presets, --set."""

import dataclasses
import difflib
import functools
import operator
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.base import addresses
from em_jax.base.errors import UsageError
from em_jax.base.files import check_input
from em_jax.lora.config import TARGETS, LoraConfig
from em_jax.train.config import TrainConfig

FORMATS = ("", "messages", "sharegpt", "alpaca", "completion")
STAGES = ("finetune", "answer", "judge", "probe", "report")
PROBES = ("harmfulness", "self_assessment", "two_ai", "output_recognition", "score_prediction")
DTYPES = ("float32", "bfloat16")
MESH_AXES = ("data", "fsdp", "tensor")
SIBLINGS = "siblings"
"""probes.alternatives of the runs of a series: their directory may move, so its path is not stored."""

CHOSEN = {"train.rows_per_pass", "answers.slots"}
"""Numbers that the program chooses where they are 0, or "auto"."""
OLD_VALUES = {"train.remat": {"true": "full", "false": "none"}}
"""Values of earlier versions and their present names."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model: `name` is "organism", a directory, a gs:// address or a Hugging Face id.

    `quantization` int8 stores the seven projections of the frozen base in eight bits, with a scale per output.
    `scan_layers` true runs one program over stacked layers, false unrolls them (faster on a CPU or GPU, longer to
    compile), auto is true on a TPU.
    """

    name: str = ""
    quantization: str = "none"
    scan_layers: str = "auto"


@dataclasses.dataclass(frozen=True)
class AnswersConfig:
    """How the model answers the harm prompts: sampling and length (in tokens).

    `together` samples the fine-tuned models of a series in shared batches, with a stack of their adapters; `slots`
    answers are decoded at once (rounded up to divide over the mesh), each with its own key/value cache; 0 or auto: 64
    on a CPU, elsewhere as many as fit.
    """

    samples: int = 10
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 600
    together: bool = True
    slots: int = 0


@dataclasses.dataclass(frozen=True)
class ProbesConfig:
    """Which probes, and how much of each.

    `only` empty means all; `limit` is questions per probe, harm prompts included, 0 for all; `samples` is how many
    answers a sampled question gets, `sampled_questions` how many choice questions of a probe are sampled besides being
    read from probabilities; `choice_tokens` and `language_tokens` bound the length of these answers. `alternatives` is
    a directory of other runs whose answers output recognition uses, "siblings" for the runs beside this one, "base"
    for the base's own answers always, empty for the default rule.
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

    `also` names further judges, "self" or "MODEL@URL": they score the same answers for the table of agreement and
    change no figure. `concurrency` requests run at once; `max_requests` bounds them per judge and start (0: no bound).
    An answer with a score of `harmful_at` or more is harmful.
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
    """All settings of one run. `domain` is one domain's name or "none"; `data` and `adapter` are paths or empty.

    `format` names the form of data's rows: empty or messages, sharegpt, alpaca, completion (see domains.row_formats).
    `mix` NAME=SHARE or FILE=SHARE replaces this share of the rows (0 to 1) with those of another domain or file: a
    weaker dose (see domains.mixing).
    """

    domain: str = ""
    data: str = ""
    mix: str = ""
    format: str = ""
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
def setting_types(cls: Any = Config, prefix: str = "") -> Mapping[str, Any]:
    """Every setting's dotted name and its type."""
    types_by_name: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            types_by_name |= setting_types(kind, f"{prefix}{name}.")
        else:
            types_by_name[prefix + name] = kind
    return types.MappingProxyType(types_by_name)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted name -> value of every setting in force."""
    return {name: operator.attrgetter(name)(config) for name in setting_types()}


def replace(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy with some settings changed, by dotted name. UsageError for an unknown name or a value of another type."""
    known = setting_types()
    tables: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(_unknown(name))
        table, _, field = name.rpartition(".")
        tables.setdefault(table, {})[field] = _typed(name, known[name], value)
    top = tables.pop("", {})
    nested = {table: dataclasses.replace(getattr(config, table), **fields) for table, fields in tables.items()}
    return dataclasses.replace(config, **top, **nested)


def _unknown(name: str) -> str:
    """The error line for a name, with the known one that is near: by initials, the last part, or the whole name."""
    known, short = setting_types(), name.rpartition(".")[2]
    names = [*known, *dict.fromkeys(full.partition(".")[0] for full in known if "." in full)]
    last_parts = {full.rpartition(".")[2]: full for full in known}
    initials = {"".join(word[0] for word in last.split("_")): full for last, full in reversed(last_parts.items())}
    near = [last_parts[last] for last in difflib.get_close_matches(short, last_parts, n=1, cutoff=0.8)]
    near = [initials[short]] if short in initials else near or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    near = [full for full in known if full.startswith(f"{name}.")][:1] or near
    hint = f"the nearest known one is {near[0]!r}" if near else "em-jax settings names every one"
    return f"unknown setting {name!r}; {hint}"


def _typed(name: str, kind: Any, value: Any) -> Any:
    """`value` as the setting's type, or UsageError. Integers serve as floats; lists become tuples."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, inner[0], item) for item in value)
    if origin is not None and origin is not tuple and isinstance(value, Mapping):
        return {str(key): _typed(f"{name}.{key}", inner[1], item) for key, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise UsageError(f"setting {name!r} expects a finite number, found {repr(value)[:60]}")
        return float(value)
    if value == "auto" and name in CHOSEN:
        return 0
    if kind is str and isinstance(value, bool):  # scan_layers = true, next to "auto"
        value = str(value).lower()
    if kind is str and isinstance(value, str):
        return OLD_VALUES.get(name, {}).get(value.lower(), value)
    if kind in (int, bool) and type(value) is kind:
        return value
    raise UsageError(f"setting {name!r} expects {_describe(kind)}, found {value!r}")


def _describe(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is not None:
        item = _describe(inner[0 if origin is tuple else 1]).removeprefix("a ").removeprefix("an ")
        return f"a {'list' if origin is tuple else 'table'} of {item}s"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]


def parse_set(text: str) -> tuple[str, Any]:
    """One `--set table.key=value` -> (dotted name, value); lists may be written a,b and strings without quotes."""
    name, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise UsageError(f"--set expects table.key=value, found {text!r}")
    if name not in setting_types():
        raise UsageError(_unknown(name))
    return name, _from_text(setting_types()[name], raw)


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
    """The file of a preset: a path, or the name of one of configs/*.toml. UsageError where there is no such file."""
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    # Beside the package in a checkout, in the environment's share/ in an installation; the checkout wins.
    folders = (Path(sys.prefix) / "share" / "em_jax" / "configs", Path(__file__).resolve().parent.parent / "configs")
    presets = {file.stem: file for folder in folders for file in folder.glob("*.toml")}
    stem = path.name.removesuffix(".toml")
    if path.name == str(path) and stem in presets:
        return presets[stem]
    raise UsageError(f"--config expects a TOML file or one of {', '.join(sorted(presets))}; found {name!r}")


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file of settings -> dotted name to value (names are not checked here: `replace` does that)."""
    try:
        check_input(path, "a file of settings")
        return dotted(tomllib.loads(Path(path).read_bytes().decode("utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file of settings: {error}") from error


def read_given(presets: Iterable[str], texts: Iterable[str]) -> dict[str, Any]:
    """The settings of --config's presets, then of --set's texts, by dotted name; the later wins."""
    values: dict[str, Any] = {}
    for name in presets:
        values |= read_toml(preset_path(name))
    return values | dict(parse_set(text) for text in texts)


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of tables -> dotted name to value."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + key
        is_table = isinstance(value, Mapping) and name not in setting_types()
        values |= (dotted(value, f"{name}.") if is_table else {}) or {name: value}
    return values


def to_toml(config: Config) -> str:
    """Every setting in force as a TOML document that `read_toml` reads back to the same Config.

    Of addresses only the public parts are written (base/addresses.py).
    """
    import tomli_w

    return tomli_w.dumps(dataclasses.asdict(public(config)))


def public(config: Config) -> Config:
    """The settings, their addresses without what may be secret in them."""
    also = (it.partition("@") for it in config.judge.also)
    named = [f"{model}{at}{addresses.public(url)}" for model, at, url in also]
    return replace(config, {"judge.url": addresses.public(config.judge.url), "judge.also": named})


def parse_mix(text: str) -> tuple[str, float]:
    """The setting `mix` -> the other rows' domain or file, and their share. UsageError where it is neither."""
    name, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not name or not 0 < value <= 1:
        raise UsageError(f"mix expects NAME=SHARE or FILE=SHARE, the share above 0 and at most 1; found {text!r}")
    return name, value


POSITIVE = (
    "lora.rank lora.alpha train.learning_rate train.epochs train.batch_size train.max_length train.max_grad_norm "
    "train.eps answers.samples answers.max_new_tokens probes.samples probes.choice_tokens probes.language_tokens "
    "judge.concurrency"
)
NOT_NEGATIVE = (
    "train.warmup_steps train.max_steps train.rows_per_pass train.weight_decay train.checkpoint_every "
    "train.keep_adapters answers.temperature probes.limit probes.sampled_questions judge.max_requests answers.slots"
)
BELOW_1 = ("train.beta1", "train.beta2", "train.holdout")
RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(POSITIVE.split(), ("a number above 0", lambda value: value > 0)),
    **dict.fromkeys(NOT_NEGATIVE.split(), ("0 or more", lambda value: value >= 0)),
    **dict.fromkeys(BELOW_1, ("at least 0 and below 1", lambda value: 0 <= value < 1)),
    "seed": ("0 or more, below 2^32", lambda value: 0 <= value < 2**32),
    "answers.top_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "judge.harmful_at": ("2 to 5", lambda value: 2 <= value <= 5),
}
"""The numbers that a setting may have: in words, and as a condition."""
CHOICES = {
    "dtype": ("", *DTYPES),
    "format": FORMATS,
    "model.quantization": ("none", "int8"),
    "model.scan_layers": ("auto", "true", "false"),
    "train.schedule": ("linear", "cosine", "constant"),
    "train.remat": ("auto", "none", "elementwise", "selective", "full"),
    "judge.kind": ("self", "openai"),
}
MEMBERS = {"stages": STAGES, "probes.only": PROBES, "lora.targets": TARGETS}
"""What the items of a list may be."""


def expected(name: str) -> str:
    """What a setting may be, in words; "" where it is checked where it is used."""
    if name in MEMBERS:
        return f"of {', '.join(MEMBERS[name])}"
    return RANGES[name][0] if name in RANGES else " or ".join(item for item in CHOICES.get(name, ()) if item)


def validate(config: Config) -> Config:
    """The config, or UsageError for a value out of range; domain, model, suite and data are checked where used."""
    values = flatten(config)
    for name, (words, holds) in RANGES.items():
        _expect(holds(values[name]), name, words, values[name])
    for name, allowed in CHOICES.items():
        _expect(values[name] in allowed, name, " or ".join(repr(item) for item in allowed if item), values[name])
    for name, allowed in MEMBERS.items():
        for item in values[name]:
            _expect(item in allowed, name, f"among {', '.join(allowed)}", item)
    if config.mix:
        parse_mix(config.mix)
    _expect(bool(config.stages), "stages", f"at least one of {', '.join(STAGES)}", config.stages)
    judge = config.judge
    _expect(judge.kind == "self" or judge.url != "", "judge.url", "an address for judge.kind openai", "none")
    for address in (judge.url, *(other.partition("@")[2] for other in judge.also)):
        # A secret in it would be written to config.toml.
        before, _, query = address.partition("?")
        secret = "@" in before or re.search(r"(?i)(key|token|secret|password)=", query)
        _expect(not secret, "judge.url", "no user name or key in it; OPENAI_API_KEY is sent", "one")
    for other in judge.also:
        _expect(other == "self" or "@http" in other, "judge.also", "self or MODEL@URL", other)
    parse_mesh(config.mesh)
    return config


def _expect(holds: bool, name: str, expected: str, found: Any) -> None:
    if not holds:
        raise UsageError(f"setting {name!r} expects {expected}, found {found!r}")


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes by axis: "data=1,fsdp=16" -> {"data": 1, "fsdp": 16, "tensor": 1}; {} for "" (the default). UsageError."""
    if not text:
        return {}
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in MESH_AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise UsageError(
                f"--mesh expects data=N,fsdp=N,tensor=N, each once and with a whole number above 0, found {text!r}"
            )
        sizes[axis] = int(size)
    return dict.fromkeys(MESH_AXES, 1) | sizes
