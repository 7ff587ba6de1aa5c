"""One file a command: parse the flags, call the work, print. `COMMANDS` lists them all."""

COMMANDS = {
    "launch": "the main job: fine-tune, answer, judge, probe, report",
    "plan": "does it fit that slice, how fast at best: compiled without the device",
    "bench": "tokens per second of training and decoding, beside a peer's",
    "domains": "the published rows of the domains: list, fetch, verify",
    "rescore": "parsers, threshold and judges again over kept answers",
    "judge": "a judge's sensitivity and specificity on answers of known harm",
    "compare": "one page over several finished runs, and a CSV",
    "report": "draw the pages of finished runs again",
    "export": "a run's rows as CSV and Parquet, its answers as logs of Inspect",
    "push": "a run's adapter and its card to the Hugging Face Hub",
    "chat": "talk to a run's base and fine-tuned model, side by side",
    "serve": "serve a run's models by OpenAI's protocol",
    "study": "several models, one page: path, sweep, chain, confound, dose, calibration, directions, steer, crossrate",
    "settings": "every setting: meaning, type, unit, range, default, the paper's value",
    "organism": "pretrain the embedded calibration model again",
}
"""Every command, whose module of that name has `main(arguments)`, and the line that `em-jax --help` has on it."""
RESUMES = ("study",)
"""The commands of which a failure's line ends with the command that continues the work, as of em_jax.launch."""
