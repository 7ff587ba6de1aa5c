"""One file a command: parse the flags, call the work, print. `COMMANDS` lists them all."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command's module, whose `main` takes the arguments, and the line that `em-jax --help` prints for it.

    Where it `resumes`, the line of a failure ends with the command that continues the work.
    """

    module: str
    summary: str
    resumes: bool = False


COMMANDS = {
    "launch": Command("em_jax.launch", "the main job: fine-tune, answer, judge, probe, report"),
    "plan": Command("em_jax.commands.plan", "does it fit that slice, how fast at best: compiled without the device"),
    "bench": Command("em_jax.commands.bench", "tokens per second of training and decoding, beside a peer's"),
    "domains": Command("em_jax.commands.domains", "the published rows of the domains: list, fetch, verify"),
    "rescore": Command("em_jax.commands.rescore", "parsers, threshold and judges again over kept answers"),
    "judge": Command("em_jax.commands.judge", "a judge's sensitivity and specificity on answers of known harm"),
    "compare": Command("em_jax.commands.compare", "one page over several finished runs, and a CSV"),
    "report": Command("em_jax.commands.report", "draw the pages of finished runs again"),
    "export": Command("em_jax.commands.export", "a run's rows as CSV and Parquet, its answers as logs of Inspect"),
    "push": Command("em_jax.commands.push", "a run's adapter and its card to the Hugging Face Hub"),
    "chat": Command("em_jax.commands.chat", "talk to a run's base and fine-tuned model, side by side"),
    "serve": Command("em_jax.commands.serve", "serve a run's models by OpenAI's protocol"),
    "study": Command(
        "em_jax.commands.study",
        "several models, one page: path, sweep, chain, confound, dose, calibration, directions, steer, crossrate",
        resumes=True,
    ),
    "settings": Command(
        "em_jax.commands.settings", "every setting: meaning, type, unit, range, default, the paper's value"
    ),
    "organism": Command("em_jax.commands.organism", "pretrain the embedded calibration model again"),
}
