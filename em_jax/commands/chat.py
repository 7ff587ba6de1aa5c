"""`em-jax chat --run_dir RUN`: talk to a run's base and fine-tuned model, side by side or one at a time."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from em_jax.base.cli import Parser, count_flag
from em_jax.base.errors import UsageError, UserError
from em_jax.base.sanitize import sanitize

HELP = (
    "Tab or /next, /base, /finetuned, /both: who answers; /temperature X, /seed N, /samples N: how it is sampled; "
    "/reset: forget what was said; /quit: end"
)
ONE_SAMPLE = "One sample is no finding: another seed may answer otherwise; /samples 8 shows how much answers vary."
SAMPLING: Mapping[str, tuple[str, type, float, float]] = {
    "/temperature": ("temperature", float, 0, 100),
    "/seed": ("seed", int, 0, 2**31 - 1),
    "/samples": ("n", int, 1, 64),
}
"""The option of Engine.generate that a command sets, its type and its range. A temperature of 0 is greedy."""


def talk(engine: Any, lines: Iterable[str], say: Callable[[str], None], **options: Any) -> None:
    """Answers line after line; `options` are those of Engine.generate, of which commands set some.

    Of several samples the first is what the conversation goes on with. Each model sees its own conversation; a line
    that begins with "/" is a command. Hidden characters that a model writes, controls among them, are spelled out.
    """
    names = [name for name in ("base", "finetuned") if name in engine.adapters]
    choices = [names, *([name] for name in names if len(names) > 1)]
    words = {"/both": 0} | {f"/{name}": choices.index([name]) for name in names}
    choice = 0
    chats: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    for line in lines:
        word, _, value = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return
        if word == "/reset":
            chats = {name: [] for name in names}
            say("(forgotten)")
        elif word == "/next" or word in words:
            choice = words.get(word, (choice + 1) % len(choices))
            say(f"({' and '.join(choices[choice])} will answer)")
        elif word in SAMPLING:
            try:
                options |= _sampling(word, value)
                say(f"({_sampled(options)})")
            except UsageError as error:
                say(f"({error})")
        elif word.startswith("/"):
            say(HELP)
        elif word:
            prompts = [[*chats[name], {"role": "user", "content": line.strip()}] for name in choices[choice]]
            try:
                answers = engine.generate(prompts, adapter=choices[choice], **options)
            except UserError as error:  # a conversation too long, or one the model's chat template refuses
                say(f"({error}; this was not said, /reset forgets all before it)")
                continue
            for name, prompt, samples in zip(choices[choice], prompts, answers, strict=True):
                chats[name] = [*prompt, {"role": "assistant", "content": samples[0].text}]
                for number, answer in enumerate(samples, 1):
                    label = f"{name} {number}/{len(samples)}" if len(samples) > 1 else name
                    say(f"{label}: {sanitize(answer.text)}{' ...' if answer.finish_reason == 'length' else ''}")


def _sampling(command: str, text: str) -> dict[str, Any]:
    """The option of Engine.generate that a command such as "/samples 8" sets. UsageError where it is out of range."""
    option, kind, least, most = SAMPLING[command]
    value = math.nan
    with contextlib.suppress(ValueError):
        value = kind(text)
    if not least <= value <= most:
        number = "a number" if kind is float else "a whole number"
        raise UsageError(f"{command} expects {number} from {least} to {most}, found {text.strip() or 'nothing'}")
    return {option: value}


def _sampled(options: dict[str, Any]) -> str:
    """How answers are sampled, in words."""
    count = options.get("n", 1)
    return (
        f"temperature {options['temperature']:g}, seed {options['seed']}, "
        f"{count} {'sample' if count == 1 else 'samples'} of each answer"
    )


def main(arguments: Sequence[str]) -> None:
    """Loads the run's model and adapter, then talks until the input ends."""
    flags = _flags(arguments)
    from em_jax.base import runtime
    from em_jax.runs import stored
    from em_jax.serve import models

    if not flags.temperature >= 0:
        raise UsageError(f"--temperature expects 0 or more, found {flags.temperature:g}")
    stored.find([flags.run_dir])
    runtime.configure_jax()
    engine, served = models.load(models.open_runs([flags.run_dir]))
    if "finetuned" in served:
        print(f"finetuned: {served['finetuned']}", file=sys.stderr)
    options = {name: getattr(flags, name) for name in ("max_new_tokens", "temperature", "seed")}
    print(f"{_sampled(options)}. {ONE_SAMPLE}", file=sys.stderr)
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        print(HELP, file=sys.stderr)
        _bind_tab()

    def lines() -> Iterable[str]:
        with contextlib.suppress(EOFError):
            while True:
                yield input("you: " if on_terminal else "")

    talk(engine, lines(), lambda text: print(text, flush=True), **options)


def _bind_tab() -> None:
    """Makes Tab, typed anywhere in a line, send /next; without GNU readline it does nothing."""
    try:
        import readline
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind(r'"\t": "\C-a\C-k/next\C-m"')


def _flags(arguments: Sequence[str]) -> Any:
    parser = Parser(
        prog="em-jax chat",
        description="Talk to a run's models: base and fine-tuned answer side by side. In the chat: " + HELP,
    )
    parser.add_argument("--run_dir", metavar="RUN", required=True, help="the run's directory")
    parser.add_argument("--max_new_tokens", **count_flag(200, 1, "length of an answer"))
    parser.add_argument("--temperature", metavar="X", type=float, default=1.0, help="0 is greedy (default 1.0)")
    parser.add_argument("--seed", **count_flag(0, 0, "of the sampling", 2**31 - 1))
    return parser.parse_args(arguments)
