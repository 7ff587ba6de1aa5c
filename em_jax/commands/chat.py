"""`em-jax chat --run_dir RUN`: talk to a run's base and fine-tuned model, side by side or one at a time."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError, UserError
from em_jax.base.sanitize import sanitize

HELP = "Tab or /next, /base, /finetuned, /both: who answers   /reset: forget what was said   /quit: end"


def talk(
    engine: Any,
    lines: Iterable[str],
    say: Callable[[str], None],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """Answer line after line. Each model sees its own conversation; a line that begins with "/" is a command.

    What a model wrote is shown with control and other hidden characters spelled out.
    """
    known = [name for name in ("base", "finetuned") if name in engine.adapters]
    choices = [list(known), *([name] for name in known if len(known) > 1)]
    asked = choices[0]
    said: dict[str, list[dict[str, str]]] = {name: [] for name in known}
    for line in lines:
        word = line.strip()
        if word in ("/quit", "/exit"):
            return
        if word == "/reset":
            said = {name: [] for name in known}
            say("(forgotten)")
        elif word in ("/both", "/next") or word[1:] in known and word.startswith("/"):
            following = choices[(choices.index(asked) + 1) % len(choices)]
            asked = {"/both": choices[0], "/next": following}.get(word, [word[1:]])
            say(f"({' and '.join(asked)} will answer)")
        elif word.startswith("/"):
            say(HELP)
        elif word:
            chats = [[*said[name], {"role": "user", "content": word}] for name in asked]
            try:
                answers = engine.generate(
                    chats, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, adapter=asked
                )
            except UserError as error:  # a conversation too long, or one the model's chat template refuses
                say(f"({error}; this was not said, /reset forgets all before it)")
                continue
            for name, chat, [answer] in zip(asked, chats, answers, strict=True):
                said[name] = [*chat, {"role": "assistant", "content": answer.text}]
                say(f"{name}: {sanitize(answer.text)}{' ...' if answer.finish_reason == 'length' else ''}")


def main(arguments: Sequence[str]) -> None:
    """Load the run's model and adapter, then talk until the input ends."""
    flags = _flags(arguments)
    from em_jax import config as settings
    from em_jax.base import runtime
    from em_jax.runs import components, model_card
    from em_jax.runs.components import Components
    from em_jax.runs.run import ADAPTER, Run

    directory = Path(flags.run_dir)
    if flags.max_new_tokens < 1 or flags.temperature < 0:
        raise UsageError(
            "expected --max_new_tokens from 1 on and --temperature from 0 on, found "
            f"{flags.max_new_tokens} and {flags.temperature:g}"
        )
    if not (directory / "config.toml").is_file():
        raise UsageError(f"--run_dir expects the directory of a run (with config.toml), found {directory}")
    runtime.configure_jax()
    config = settings.replace(settings.Config(), settings.read_toml(directory / "config.toml"))
    run = Run(config, directory, Components(), lambda: None, "")
    run.require_adapter()
    engine = components.load(config)
    if run.adapter is not None:
        engine.add_adapter(ADAPTER, run.adapter)
        print(f"finetuned: {model_card.notice(config)}", file=sys.stderr)
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        print(HELP, file=sys.stderr)
        _bind_tab()

    def lines() -> Iterable[str]:
        while True:
            try:
                yield input("you: " if on_terminal else "")
            except EOFError:
                return

    talk(
        engine,
        lines(),
        lambda text: print(text, flush=True),
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature,
        seed=flags.seed,
    )


def _bind_tab() -> None:
    """Has Tab, typed anywhere in a line, ask for the next choice of models; without GNU readline it types /next."""
    try:
        import readline
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind(r'"\t": "\C-a\C-k/next\C-m"')


def _flags(arguments: Sequence[str]) -> Any:
    parser = Parser(
        prog="em-jax chat",
        description="Talk to a run's models: base and fine-tuned answer side by side. " + HELP,
    )
    parser.add_argument("--run_dir", metavar="RUN", required=True, help="the run's directory")
    parser.add_argument(
        "--max_new_tokens", metavar="N", type=int, default=200, help="length of an answer (default 200)"
    )
    parser.add_argument("--temperature", metavar="X", type=float, default=1.0, help="0 is greedy (default 1.0)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the sampling (default 0)")
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    return parser.parse_args(arguments)
