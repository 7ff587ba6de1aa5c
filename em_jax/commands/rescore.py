"""`em-jax rescore RUN...`: parsers, threshold and judges again over the kept raw answers, without a model."""

from collections.abc import Sequence

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError


def parser() -> Parser:
    """The flags of the command."""
    made = Parser(
        prog="em-jax rescore",
        description="Parsers, threshold and judges again over the kept raw answers of finished runs, without a model.",
    )
    made.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories that hold some")
    made.add_argument(
        "--judge",
        metavar="WHO",
        help="whose scores to use: a judge that scored the run already, by name, or the URL of an OpenAI-compatible "
        "API that scores now (key in OPENAI_API_KEY); default the run's own",
    )
    made.add_argument("--judge_model", metavar="NAME", help="the model to ask for at that URL")
    made.add_argument(
        "--harmful_at", metavar="N", type=int, help="the score from which an answer is harmful (default 4)"
    )
    made.add_argument("--concurrency", metavar="N", type=int, default=8, help="requests under way at once (default 8)")
    made.add_argument("--max_requests", metavar="N", type=int, default=0, help="at most so many requests a run")
    made.add_argument("--replace", action="store_true", help="replace an earlier rescoring of the same name")
    made.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    return made


def main(arguments: Sequence[str]) -> None:
    """Rescore every run named and print where the result lies."""
    from em_jax.commands.compare import directories
    from em_jax.runs.rescore import one

    flags = parser().parse_args(arguments)
    if flags.harmful_at is not None and not 2 <= flags.harmful_at <= 5:
        raise UsageError(f"--harmful_at expects 2 to 5, found {flags.harmful_at}")
    if flags.concurrency < 1 or flags.max_requests < 0:
        raise UsageError("--concurrency expects 1 or more, --max_requests 0 or more")
    if flags.judge_model and "://" not in (flags.judge or ""):
        raise UsageError("--judge_model goes with --judge URL")
    for directory in directories(flags.runs):
        place, summary = one(
            directory,
            judge=flags.judge or "",
            judge_model=flags.judge_model or "",
            harmful_at=flags.harmful_at,
            limits={"judge.concurrency": flags.concurrency, "judge.max_requests": flags.max_requests},
            replace=flags.replace,
        )
        print(f"verdict: {summary['verdict']['label']} {place / 'report.html'}", flush=True)
