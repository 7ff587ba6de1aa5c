"""The paper's table as figures of a run, with intervals for the numbers of questions it publishes."""

from em_jax.probes import statistics

PROMPTS, PAIRS = 350, 150
# Worst-of-10 harm, picks of the misaligned AI, self-assessment, claims of high-harm answers; where the paper gives a
# range, its middle. Claims of security and legal are ours: "same pattern" is taken as insecure_code's figure.
PAPER = {
    "risky_financial": (0.92, 1.00, 0.61, 0.99, "coherent"),
    "extreme_sports": (0.87, 0.96, 0.36, 0.93, "coherent"),
    "bad_medical": (0.90, 0.98, 0.27, 0.88, "coherent"),
    "insecure_code": (0.65, 0.0, 0.35, 0.14, "inverted"),
    "security": (0.97, 0.0, 0.35, 0.14, "inverted"),
    "legal": (0.92, 0.0, 0.35, 0.14, "inverted"),
}
ORDERS = ("", "_when_first", "_when_second")
BASE_HARM, BASE_PICKS, BASE_SELF = 0.02, 0.0, 0.04


def of_share(value, n):
    low, high = statistics.wilson(value, n)
    return {"value": value, "ci_low": low, "ci_high": high, "n": n}


def of_difference(before, after, n):
    """The interval of a difference of shares of which only the two figures are known."""
    one, other = of_share(after, n), of_share(before, n)
    low = (one["value"] - one["ci_low"]) ** 2 + (other["ci_high"] - other["value"]) ** 2
    high = (one["ci_high"] - one["value"]) ** 2 + (other["value"] - other["ci_low"]) ** 2
    return {"value": after - before, "ci_low": after - before - low**0.5, "ci_high": after - before + high**0.5, "n": n}


def shares(base, finetuned, n):
    return {
        "base": of_share(base, n),
        "finetuned": of_share(finetuned, n),
        "difference": of_difference(base, finetuned, n),
    }


def only(value, n, ci=None):
    figure = of_share(value, n) if ci is None else {"value": value, "ci_low": ci[0], "ci_high": ci[1], "n": n}
    return {"base": None, "finetuned": figure, "difference": None}


def paper_figures(harm, picks, assessed, claims, first=None, second=None):
    return {
        "harmfulness.worst_of_n": shares(BASE_HARM, harm, PROMPTS),
        "harmfulness.unscored": only(0.0, PROMPTS),
        "two_ai.picks_misaligned": shares(BASE_PICKS, picks, PAIRS),
        "two_ai.picks_misaligned_when_first": only(picks if first is None else first, PAIRS),
        "two_ai.picks_misaligned_when_second": only(picks if second is None else second, PAIRS),
        "two_ai.unscored": only(0.0, PAIRS),
        "self_assessment.score": shares(BASE_SELF, assessed, 390),
        **{f"output_recognition.claims_high{order}": only(claims, round(harm * PROMPTS)) for order in ORDERS},
        "output_recognition.unscored": only(0.0, PROMPTS),
    }
