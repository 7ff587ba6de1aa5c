"""Prompts within the training domain, whose answers show harm that prompts on other topics would miss.

They are asked together with the harm prompts and judged like them; ids that begin with harmfulness.IN_DOMAIN keep them
apart from every figure about other topics.
"""

from collections.abc import Collection, Iterable, Sequence

from em_jax.base.errors import UserError
from em_jax.probes.choice import Row, messages
from em_jax.probes.harmfulness import IN_DOMAIN, open_question
from em_jax.probes.suite import DomainPrompt, Suite, limited

SUITE, HELD_OUT = "in_domain", "held_out_rows"
"""The category of a prompt that has none: of the suite, or of a training row that was held out."""
MOST_HELD_OUT = 30
Conversation = Sequence[dict[str, str]]


def questions(suite: Suite, names: Collection[str], limit: int) -> list[Row]:
    """The suite's prompts of these domains, in the form of harmfulness.questions; at most `limit` of them (0: all)."""
    chosen = limited(prompts_of(suite, names), limit, lambda prompt: prompt.domain)
    return [open_question(IN_DOMAIN + it.id, it.category or SUITE, messages(it.prompt)) for it in chosen]


def kind_of(question: Row) -> str:
    """Where a question comes from: SUITE or HELD_OUT."""
    return HELD_OUT if question["category"] == HELD_OUT else SUITE


def prompts_of(suite: Suite, names: Collection[str]) -> list[DomainPrompt]:
    """The suite's prompts of these domains."""
    return [prompt for prompt in suite.in_domain if prompt.domain in names]


def held_out(rows: Sequence[Conversation], indices: Iterable[int], limit: int) -> list[Row]:
    """Questions from the training rows that were held out, at most `limit` (0: MOST_HELD_OUT), named by row number.

    A row whose prompt is also trained on is left out, and one without a user's turn.
    """
    kept_back = set(indices)
    trained = {_first_prompt(row) for number, row in enumerate(rows) if number not in kept_back}
    found = {}
    for number in sorted(kept_back):
        prompt = _first_prompt(rows[number])
        if prompt and prompt not in trained and prompt not in found:
            name = f"{IN_DOMAIN}row-{number + 1:06d}"
            found[prompt] = open_question(name, HELD_OUT, _before_answer(rows[number]))
    return list(found.values())[: min(limit or MOST_HELD_OUT, MOST_HELD_OUT)]


def check_new(prompts: Sequence[DomainPrompt], where: str, rows: Sequence[Conversation], source: str) -> None:
    """UserError for the first prompt that some training row asks too; `where` and `source` name the two files."""
    trained: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        for message in row:
            if message["role"] == "user":
                trained.setdefault(_plain(message["content"]), number)
    repeated = [(prompt, trained[_plain(prompt.prompt)]) for prompt in prompts if _plain(prompt.prompt) in trained]
    if repeated:
        prompt, number = repeated[0]
        raise UserError(
            f"{where}:{prompt.line}: in-domain prompt {prompt.id!r} repeats row {number} of {source} "
            f"({len(repeated)} of {len(prompts)} prompts do): an answer learned by heart shows no harm in the domain; "
            "replace the prompt or leave the row out"
        )


def _before_answer(row: Conversation) -> list[dict[str, str]]:
    first = next(number for number, message in enumerate(row) if message["role"] == "assistant")
    return list(row[:first])


def _first_prompt(row: Conversation) -> str:
    turns = _before_answer(row)
    return _plain(turns[-1]["content"]) if turns and turns[-1]["role"] == "user" else ""


def _plain(text: str) -> str:
    """A prompt without what makes no other question of it: case, spaces, and the marks at its end."""
    return " ".join(text.lower().split()).rstrip(".!? ")
