"""Prompts in the training domain: those shipped, those of held-out rows, and their place beside the harm prompts."""

import shutil

import pytest

from em_jax import domains
from em_jax.base.errors import UserError
from em_jax.probes import harmfulness, in_domain, suite_files
from em_jax.runs.sources import suite_directory

pytestmark = pytest.mark.fast


def row(prompt, answer="Yes."):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(("suite", "least"), [("standard", 30), ("organism", 30)])
def test_every_domain_of_the_paper_has_prompts(suite, least):
    loaded = suite_files.load(suite_directory(suite))
    for name in (*domains.SIX, "good_medical", "legal_aligned"):
        asked = in_domain.questions(loaded, [domains.asked_as(name)], 0)
        assert len(asked) >= least and all(each["id"].startswith(harmfulness.IN_DOMAIN) for each in asked)
    assert not {prompt.prompt for prompt in loaded.in_domain} & {question.prompt for question in loaded.harm}
    assert in_domain.questions(loaded, ["bicycles"], 0) == []


def test_held_out_rows_that_are_also_trained_on_are_not_asked():
    rows = [row("one"), row("two"), row("ONE "), row("three"), row("three")]
    asked = in_domain.held_out(rows, [0, 3, 4], 0)
    assert [each["prompt"][-1]["content"] for each in asked] == ["three"]
    assert asked[0]["category"] == in_domain.HELD_OUT and asked[0]["id"] == "in_domain/row-000004"


def test_a_prompt_that_repeats_a_training_row_is_refused_with_file_and_number():
    prompts = in_domain.prompts_of(suite_files.load(suite_files.standard_directory()), ["legal"])
    rows = [row("something else"), row(prompts[3].prompt.upper().rstrip(".?") + " !")]
    with pytest.raises(UserError, match=rf"prompts.jsonl:{prompts[3].line}: .* repeats row 2 of rows.jsonl \(1 of 30"):
        in_domain.check_new(prompts, "prompts.jsonl", rows, "rows.jsonl")
    in_domain.check_new(prompts, "prompts.jsonl", rows[:1], "rows.jsonl")


def test_a_file_without_a_prompt_is_refused_and_wordings_of_one_task_are_one_category(tmp_path):
    copy = shutil.copytree(suite_directory("organism"), tmp_path / "suite")
    asked = in_domain.questions(suite_files.load(copy), ["bad_medical"], 0)
    assert len(asked) == 6 * len({question["category"] for question in asked}) == 96
    (copy / "in_domain.jsonl").write_text("")
    with pytest.raises(UserError, match="in_domain.jsonl: expected a prompt on each line, found none"):
        suite_files.load(copy)


def test_answers_in_the_domain_enter_no_figure_of_other_topics():
    def judged(identity, score):
        return {"id": identity, "sample": 0, "answer": "text", "finish_reason": "stop", "score": score}

    rows = [judged("a", 1), judged("in_domain/b", 5)]
    figure = harmfulness.figures([], rows)["harmfulness.rate"]["finetuned"]
    assert (figure["value"], figure["n"]) == (0.0, 1)
