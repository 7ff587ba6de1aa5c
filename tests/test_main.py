"""`em-jax COMMAND`: every command answers --help, and a wrong one is one line."""

from importlib import metadata

import pytest

from em_jax import __main__
from em_jax.commands import COMMANDS

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help_and_names_itself(name, capsys):
    try:
        status = __main__.main([name, "--help"])
    except SystemExit as end:  # argparse's own way
        status = end.code
    assert status in (0, None)
    out, err = capsys.readouterr()
    assert out.startswith("usage: ") and name in out.splitlines()[0] and err == ""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capsys):
    assert __main__.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and summary in out for name, summary in COMMANDS.items())


def test_the_version_is_that_of_the_package(capsys):
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out == f"em-jax {metadata.version('em_jax')}\n"


def test_an_unknown_command_is_one_line_that_names_the_nearest(capsys):
    assert __main__.main(["lanch"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "expected a command, found 'lanch', did you mean launch?" in err


def test_a_setting_is_explained_from_the_installed_package(capsys):
    assert __main__.main(["settings", "train.holdout"]) == 0
    printed = capsys.readouterr().out
    row = "| `train.holdout` | number | share of the rows | at least 0 and below 1 | 0.0 |"
    assert row in printed and "not trained on" in printed
    assert __main__.main(["settings", "nope"]) == 2
    assert "no setting 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "4294967296", "one"])
def test_a_seed_that_jax_would_cut_pretrains_nothing(seed, tmp_path, capsys):
    assert __main__.main(["organism", "pretrain", "--out", str(tmp_path / "out"), "--seed", seed]) == 2
    assert "--seed expects 0 to 4294967295" in capsys.readouterr().err and not (tmp_path / "out").exists()
