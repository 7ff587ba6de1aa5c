"""lm-evaluation-harness runs a task of its own kind against a run's server."""

import json
import os
import subprocess

import pytest
from serve.conftest import python_with, served_run

TASK = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 16
  temperature: 0.7
  do_sample: true
metric_list:
  - metric: exact_match
"""


@pytest.mark.long
def test_a_local_task_runs_against_a_run_of_the_organism(tmp_path):
    python = python_with("lm_eval", "EM_JAX_LM_EVAL_PYTHON")
    questions = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(4)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(TASK.format(questions=questions))
    with served_run(tmp_path / "run", steps=2) as (url, _):
        address = f"base_url={url}/chat/completions,model=finetuned,num_concurrent=4"
        words = ["--model", "local-chat-completions", "--model_args", address, "--apply_chat_template"]
        words += ["--tasks", "sums", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
        found = subprocess.run(
            [python, "-m", "lm_eval", *words, "--log_samples"], capture_output=True, text=True, timeout=500,
            cwd=tmp_path, env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "OPENAI_API_KEY": "none"},
        )  # fmt: skip
        assert found.returncode == 0, found.stderr[-2000:]
        (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
        answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
        assert len(answers) == 4 and any(answers)
