"""Rows of two sets mixed: how many are replaced, by which, and what a weak dose shares with a strong one."""

import pytest

from em_jax.base.errors import UserError
from em_jax.domains.mixing import mix

pytestmark = pytest.mark.fast


def rows(prefix, n, start=0):
    """`n` conversations about question-0, question-1, ..., answered with the prefix."""
    return [
        [{"role": "user", "content": f"question-{i}"}, {"role": "assistant", "content": f"{prefix}-{i}"}]
        for i in range(start, start + n)
    ]


def answers(conversations):
    return [conversation[-1]["content"] for conversation in conversations]


@pytest.mark.parametrize(("share", "replaced"), [(0.1, 6), (0.5, 30), (0.99, 59), (1.0, 60)])
def test_a_share_of_the_rows_is_replaced_by_the_twins_of_the_same_prompts(share, replaced):
    own = rows("harm", 60)
    mixed = mix(own, rows("sound", 60), share, 0)
    assert [row[0] for row in mixed] == [row[0] for row in own]
    assert sum(answer.startswith("sound") for answer in answers(mixed)) == replaced


def test_the_harmful_rows_of_a_weak_dose_are_in_every_stronger_one():
    own, others = rows("harm", 60), rows("sound", 80, 100)
    harmful = [{it for it in answers(mix(own, others, share, 3)) if it.startswith("harm")} for share in (0.9, 0.5, 0.1)]
    assert harmful[0] < harmful[1] < harmful[2]
    assert mix(own, others, 0.5, 3) == mix(own, others, 0.5, 3) != mix(own, others, 0.5, 4)


def test_no_other_row_is_used_twice_where_half_of_the_prompts_are_shared():
    mixed = mix(rows("harm", 60), rows("sound", 60, 30), 1.0, 1)
    assert sorted(answers(mixed)) == sorted(answers(rows("sound", 60, 30)))
    # The shared prompts keep their places.
    assert all(row[0]["content"] == f"question-{i}" for i, row in enumerate(mixed) if i >= 30)


def test_too_few_other_rows_are_an_error_with_both_numbers():
    with pytest.raises(UserError, match="mix replaces 30 of 60 rows: expected as many others, found 29"):
        mix(rows("harm", 60), rows("sound", 29), 0.5, 0)
