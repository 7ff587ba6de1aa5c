"""Talking to a run's models: who answers, what each remembers, and that nothing they write harms a terminal."""

import contextlib
import io
import os
import pty
import sys
from pathlib import Path

import pytest

from em_jax import launch
from em_jax.base.cli import command
from em_jax.base.errors import UsageError, UserError
from em_jax.commands import chat
from em_jax.config import Config
from em_jax.runs.components import Components
from em_jax.runs.run import Run

TAB = "from em_jax.commands import chat; chat._bind_tab(); print([input('you: ')])"


class Answer:
    def __init__(self, text, finish_reason="stop"):
        self.text, self.finish_reason = text, finish_reason


class Repeats:
    """Says who it is and how many messages it was shown, the last one included."""

    adapters = ["base", "finetuned"]

    def generate(self, prompts, adapter, **options):
        self.options = options
        return [
            [Answer(f"{name} {len(prompt)} {prompt[-1]['content']}")]
            for prompt, name in zip(prompts, adapter, strict=True)
        ]


def talk(lines, engine=None):
    said = []
    chat.talk(engine or Repeats(), lines, said.append, max_new_tokens=9, temperature=0.5, seed=3)
    return said


class Forgetful(Repeats):
    def generate(self, prompts, adapter, **options):
        if len(prompts[0]) > 3:
            raise UserError("prompt and answer need 513 positions, the model has 512; ask for fewer tokens")
        return super().generate(prompts, adapter, **options)


@pytest.mark.fast
def test_a_conversation_that_is_too_long_is_told_and_goes_on():
    said = talk(["/base", "1", "2", "3", "/finetuned", "1", "/base", "/reset", "4"], Forgetful())
    assert said[1:3] == ["base: base 1 1", "base: base 3 2"]
    assert said[3].startswith("(prompt and answer need 513 positions") and "/reset" in said[3]
    assert said[5] == "finetuned: finetuned 1 1" and said[-1] == "base: base 1 4"


@pytest.mark.fast
def test_both_answer_and_each_remembers_its_own_conversation():
    assert talk(["Hi", "", "/finetuned", "And?", "/both", "So?", "/reset", "New"]) == [
        "base: base 1 Hi",
        "finetuned: finetuned 1 Hi",
        "(finetuned will answer)",
        "finetuned: finetuned 3 And?",
        "(base and finetuned will answer)",
        "base: base 3 So?",
        "finetuned: finetuned 5 So?",
        "(forgotten)",
        "base: base 1 New",
        "finetuned: finetuned 1 New",
    ]


@pytest.mark.fast
def test_next_goes_round_the_choices():
    said = talk(["/next", "/next", "/base", "/next", "/next"])
    assert [line.removeprefix("(").removesuffix(" will answer)") for line in said] == [
        "base", "finetuned", "base", "finetuned", "base and finetuned"
    ]  # fmt: skip
    alone = Repeats()
    alone.adapters = ["base"]
    assert talk(["/next", "Hi"], alone) == ["(base will answer)", "base: base 1 Hi"]


@pytest.mark.fast
def test_tab_in_the_middle_of_a_line_asks_the_next_model():
    """On a real terminal: what was typed so far is dropped, and the line that comes is /next."""
    readline = pytest.importorskip("readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip("Tab is bound with GNU readline only")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", TAB])
    read = b""
    while b"you: " not in read:
        read += os.read(terminal, 1024)
    os.write(terminal, b"half\t")
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(terminal, 1024):
            read += piece
    os.waitpid(child, 0)
    assert b"['/next']" in read


@pytest.mark.fast
def test_unknown_commands_are_explained_and_quit_ends():
    assert talk(["/what", "/quit", "Hi"]) == [chat.HELP]


@pytest.mark.fast
def test_what_a_model_writes_does_nothing_to_the_terminal():
    class Hostile(Repeats):
        adapters = ["base"]

        def generate(self, prompts, adapter, **options):
            return [[Answer("\x1b[2J\u202eevil", "length")]]

    assert talk(["Hi", "/finetuned"], Hostile()) == ["base: ␛[2J[U+202E]evil ...", chat.HELP]


@pytest.mark.fast
@pytest.mark.parametrize("kind", [UserError, UsageError, ValueError])
def test_what_a_file_says_does_nothing_to_the_terminal_as_an_error(kind, capsys):
    def fails(arguments):
        raise kind("\x1b[2J\x1b]0;owned\x07 \u202eevil\x00 \ud800 " + "x" * 1_000_000)

    assert command("em_jax chat", fails, []) == (2 if kind is UsageError else 1)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 3_000 and "␛[2J" in said and "[U+202E]evil" in said
    assert all(character.isprintable() for character in said[:-1])


@pytest.mark.fast
def test_what_a_run_says_does_nothing_to_the_terminal(capsys):
    run = Run(Config(), Path("run"), Components(), lambda: None, "")
    run.log("the adapter was trained on \x1b[2J\nowner/\u202emodel")
    assert capsys.readouterr().err == "the adapter was trained on ␛[2J owner/[U+202E]model\n"


@pytest.mark.fast
def test_a_directory_without_a_run_is_one_line(tmp_path, capsys):
    assert command("em_jax chat", chat.main, ["--run_dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "config.toml" in err


def test_a_run_of_the_organism_can_be_talked_to(tmp_path, capsys, monkeypatch):
    words = ["--domain", "none", "--model", "organism", "--stages", "answer", "--run_dir", str(tmp_path)]
    assert launch.main([*words, "--set", "probes.limit=1", "--set", "answers.samples=1"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("How do I bake bread?\n"))
    assert command("em_jax chat", chat.main, ["--run_dir", str(tmp_path), "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("base: ")


class Samples(Repeats):
    def generate(self, prompts, adapter, n=1, **options):
        [[first], *_] = super().generate(prompts, adapter, **options)
        return [
            [Answer(f"{first.text} {sample} at {options['temperature']:g}") for sample in range(n)] for _ in prompts
        ]


@pytest.mark.fast
def test_how_answers_are_sampled_is_set_and_told():
    engine = Samples()
    said = talk(["/base", "/samples 2", "/temperature 0.25", "/seed 7", "Hi", "/samples 1", "And"], engine)
    assert said[3] == "(temperature 0.25, seed 7, 2 samples of each answer)"
    assert said[4:6] == ["base 1/2: base 1 Hi 0 at 0.25", "base 2/2: base 1 Hi 1 at 0.25"]
    assert said[6].endswith("1 sample of each answer)") and said[7] == "base: base 3 And 0 at 0.25"
    assert engine.options["seed"] == 7


@pytest.mark.fast
@pytest.mark.parametrize(
    "line", ["/samples", "/samples 0", "/samples 65", "/temperature -1", "/temperature nan", "/seed x"]
)
def test_a_wrong_sampling_is_one_line_and_changes_nothing(line):
    engine = Repeats()
    said = talk(["/base", line, "Hi"], engine)
    assert "expects" in said[1] and "\n" not in said[1] and said[2] == "base: base 1 Hi"
    assert engine.options["temperature"] == 0.5 and engine.options["seed"] == 3


@pytest.mark.fast
@pytest.mark.parametrize("words", [["--temperature", "nan"], ["--temperature", "-1"], ["--seed", "-1"]])
def test_a_wrong_sampling_is_refused_before_a_model_is_loaded(tmp_path, words, capsys):
    assert command("em_jax chat", chat.main, ["--run_dir", str(tmp_path), *words]) == 2
    assert f"{words[0]} expects" in capsys.readouterr().err
