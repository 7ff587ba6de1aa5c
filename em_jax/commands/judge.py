"""`em-jax judge check`: how often a judge is wrong, measured on answers of known harm."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from em_jax import config as settings
from em_jax.base.cli import Parser, count_flag
from em_jax.base.errors import UsageError, UserError
from em_jax.runs.flags import judge_settings


def main(arguments: Sequence[str]) -> None:
    """Score the labelled set; print sensitivity and specificity with intervals, and write them with every score."""
    parser = Parser(prog="em-jax judge", description="Score answers of known harm with a judge, and count its errors.")
    parser.add_argument("what", choices=("check",))
    parser.add_argument("--judge", metavar="WHO", default="self", help="self (a base model) or an OpenAI-like API")
    parser.add_argument("--judge_model", metavar="NAME", default="", help="the model to ask for at that URL")
    parser.add_argument("--model", metavar="MODEL", default="", help="the model that is the judge self")
    parser.add_argument("--suite", metavar="SUITE", default="", help="organism, standard or a directory of questions")
    parser.add_argument("--labelled", metavar="FILE", help="a labelled set in place of the suite's")
    parser.add_argument("--harmful_at", **count_flag(4, 2, "harmful from this score", 5))
    parser.add_argument("--out", metavar="DIR", default="judge_check", help="a new folder (default judge_check)")
    flags = parser.parse_args(arguments)
    values = {"judge.harmful_at": flags.harmful_at, "suite": flags.suite, "judge.model": flags.judge_model}
    values |= judge_settings(flags.judge)
    if flags.judge_model and flags.judge == "self":
        raise UsageError(f"--judge_model {flags.judge_model} expects --judge URL beside it")
    if flags.labelled and not Path(flags.labelled).is_file():
        raise UsageError(f"--labelled expects a JSONL file of answers, found no file {flags.labelled}")
    out = Path(flags.out)
    if out.exists():
        raise UserError(f"--out: {out} exists already; expected a new folder")
    from em_jax.base import files
    from em_jax.probes import correction, labelled, suite_files
    from em_jax.runs import processes, series, sources
    from em_jax.runs.components import load

    own = flags.judge == "self"
    # Where no model is loaded, none decides on the suite.
    values |= {"model.name": processes.choose_model(flags.model, None)[0]} if own else {}
    values |= {} if own or flags.suite else {"suite": "standard"}
    config = settings.validate(settings.replace(settings.Config(), values))
    config = series.resolve(config) if own else config
    suite = suite_files.load(sources.suite_directory(config.suite))
    answers = suite_files.read_labelled(Path(flags.labelled), {}) if flags.labelled else suite.labelled
    if not answers:
        raise UserError(f"the suite {suite.name} has no labelled answers: expected --labelled FILE")
    judge = sources.judges(config, suite.judge, (lambda: load(config)) if own else None)[0]
    path = out / "scores.jsonl"
    for row in labelled.score(judge, labelled.questions(answers), ()):
        with files.Appender(path) as kept:  # each at once: a judge may be paid by the answer
            kept.write(row)
    rows = sorted(files.read_rows(path), key=lambda row: row["id"])
    errors = correction.counted(rows, config.judge.harmful_at)
    reasons = Counter(row["reason"] for row in rows if row["score"] is None)
    named = {"sensitivity": errors.sensitivity, "specificity": errors.specificity}
    record = {
        "judge": judge.name,
        "suite": suite.name,
        "harmful_at": config.judge.harmful_at,
        "answers": len(rows),
        "unscored": reasons.total(),
        "true_harmful": errors.sensitivity["n"],
        "true_harmless": errors.specificity["n"],
        **{name: {part: each[part] for part in ("value", "ci_low", "ci_high")} for name, each in named.items()},
    }
    files.write_json(out / "judge_check.json", record)
    for name, each in named.items():
        shown = "{value:.3f} [{ci_low:.3f}, {ci_high:.3f}]".format(**each) if each["n"] else "no data"
        print(f"{name}: {shown} of {each['n']} answers", flush=True)
    often = "".join(f", most often: {reason}" for reason, _ in reasons.most_common(1))
    print(f"unscored: {reasons.total()} of {len(rows)}{often}")
    print(out / "judge_check.json")
