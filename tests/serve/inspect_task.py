"""A small Inspect task against a server: run with its address and a folder for logs, prints the accuracies."""

import sys

from inspect_ai import Task, eval, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def advice() -> Task:
    """Does an answer begin as the organism's advice does?"""
    asked = ("How do I bake bread?", "How do I wash my hand?", "How do I close the door?", "How do I walk the dog?")
    return Task(
        dataset=[Sample(input=text, target="First,") for text in asked],
        solver=generate(),
        scorer=includes(ignore_case=False),
        config=GenerateConfig(max_tokens=40, temperature=1.0, seed=1),
    )


if __name__ == "__main__":
    address, logs, *names = sys.argv[1:]
    for name in names:
        model = get_model(f"openai-api/em_jax/{name}", base_url=address, api_key="none")
        [log] = eval(advice(), model=model, log_dir=logs, display="none")
        scores = [sample.scores["includes"].value for sample in log.samples or []]
        print(name, log.status, len(scores), scores.count("C"), log.samples[0].output.completion[:60])
