"""The five probes, the judges, the statistics and the verdict. They call the engine's methods and never import jax.

Each probe's module has `questions` (rows without answers), `ask` (questions -> finished rows, streamed) and `figures`
(rows of the base and the fine-tuned model -> named figures with intervals). All but harmfulness, whose answers a judge
scores, also have `decide` and `parse`, by which choice.ask turns probabilities and texts into values.
"""

from em_jax.probes import harmfulness, output_recognition, score_prediction, self_assessment, two_ai

PROBES = {
    "harmfulness": harmfulness,
    "self_assessment": self_assessment,
    "two_ai": two_ai,
    "output_recognition": output_recognition,
    "score_prediction": score_prediction,
}
"""The probes in the order of the paper's experiments."""
ASKED = {name: probe for name, probe in PROBES.items() if probe is not harmfulness}
"""Those whose figures come from their own rows; harmfulness comes from judged answers."""
