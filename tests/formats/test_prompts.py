"""What may be passed as prompts, and that anything else is one clear line."""

import pytest

from em_jax.base.errors import UserError
from em_jax.formats.prompts import chats

ASK = {"role": "user", "content": "Who are you?"}
CHAT = [{"role": "system", "content": "Be brief."}, ASK]


@pytest.mark.fast
@pytest.mark.parametrize(
    "prompts, expected",
    [
        ("Who are you?", [[ASK]]),
        (["Who are you?"], [[ASK]]),
        (["Who are you?"] * 2, [[ASK], [ASK]]),
        (("Who are you?",), [[ASK]]),
        (ASK, [[ASK]]),
        ([ASK], [[ASK]]),
        (CHAT, [CHAT]),
        ([CHAT], [CHAT]),
        ([CHAT, "Who are you?"], [CHAT, [ASK]]),
        ([], []),
    ],
)
def test_a_question_a_chat_or_a_list_of_either(prompts, expected):
    assert chats(prompts) == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    "prompts, told",
    [
        (None, "found NoneType"),
        (5, "found int"),
        (b"Hi", "found bytes"),
        ([5], "prompt 0: expected a text or a list of messages, found int"),
        (["Hi", None], "prompt 1"),
        ([[]], "an empty list"),
        ([["Hi"]], "prompt 0, message 0"),
        ([ASK, "Hi"], "prompt 0"),
        ([[{"content": "Hi"}]], "expected a text as 'role', found only content"),
        ([{"role": "user"}], "expected a text as 'content', found only role"),
        ([{"role": "user", "text": "Hi"}], "found only role, text"),
        ([{"role": "user", "content": 5}], "found int"),
        ([[{}]], "expected a text as 'role', found nothing"),
    ],
)
def test_anything_else_is_one_clear_line(prompts, told):
    with pytest.raises(UserError) as error:
        chats(prompts)
    assert told in str(error.value) and "\n" not in str(error.value)
