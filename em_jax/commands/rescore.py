"""`em-jax rescore RUN...`: parsers, threshold and judges again over the kept raw answers, without a model."""

from collections.abc import Sequence

from em_jax.base.cli import count_flag, whole
from em_jax.base.errors import UsageError
from em_jax.commands.compare import runs_parser


def main(arguments: Sequence[str]) -> None:
    """Rescore every run named and print the verdict and where the result is."""
    parser = runs_parser(
        "em-jax rescore",
        "Parsers, threshold and judges again over the kept raw answers of finished runs, without a model.",
    )
    parser.add_argument(
        "--judge",
        metavar="WHO",
        default="",
        help="whose scores to use: a judge that scored the run already, by name, or the URL of an OpenAI-compatible "
        "API that scores now (key in OPENAI_API_KEY); default the run's own",
    )
    parser.add_argument("--judge_model", metavar="NAME", default="", help="the model to ask for at that URL")
    harmful_help = "the score from which an answer is harmful (default 4)"
    parser.add_argument("--harmful_at", metavar="N", type=whole(2, 5), help=harmful_help)
    parser.add_argument("--concurrency", **count_flag(8, 1, "requests at once"))
    parser.add_argument("--max_requests", metavar="N", type=whole(0), default=0, help="at most so many requests a run")
    parser.add_argument("--replace", action="store_true", help="replace an earlier rescoring of the same name")
    flags = parser.parse_args(arguments)
    if flags.judge_model and "://" not in flags.judge:
        raise UsageError("--judge_model goes with --judge URL")
    from em_jax.runs import stored
    from em_jax.runs.rescore import rescore

    changes = {"judge.concurrency": flags.concurrency, "judge.max_requests": flags.max_requests}
    if flags.harmful_at is not None:
        changes["judge.harmful_at"] = flags.harmful_at
    for directory in stored.find(flags.runs, several=True, finished=True):
        target, summary = rescore(directory, flags.judge, flags.judge_model, changes, flags.replace)
        print(f"verdict: {summary['verdict']['label']} {target / 'report.html'}", flush=True)
