"""Run docs/notebooks as written, except for the replacements below; their outputs are not stored."""

import json
import os
from pathlib import Path

import nbclient
import nbformat
import pytest
import tiny
from tokenizers_made import write_byte_level

from em_jax.formats.model_config import read_config
from em_jax.formats.peft import save_adapter
from em_jax.lora.config import LoraConfig

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
QWEN = "Qwen/Qwen2.5-7B-Instruct"
HUB = f"ModelOrganismsForEM/{QWEN[5:]}_bad-medical-advice"
FEW = '"probes.only": ["harmfulness", "two_ai"], "probes.limit": 1, "answers.max_new_tokens": 4, "answers.samples": 1'


def run(name: str, folder: Path, replaced: dict[str, str]) -> list[dict]:
    """The outputs of a notebook that a kernel of this Python runs in `folder`; a cell that raises fails the test."""
    text = (NOTEBOOKS / name).read_text()
    for old, new in replaced.items():
        old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
        assert old in text, f"{name} has no {old!r} any more"
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(outputs: list[dict], kind: str) -> str:
    """Everything that was shown in one form: text/plain, text/html, or a widget."""
    return "".join(str(output.get("data", {}).get(kind, "")) for output in outputs)


@pytest.mark.fast
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_output_is_stored_and_the_readme_names_it(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
    assert f"docs/notebooks/{path.name}" in (ROOT / "README.md").read_text()


def test_a_first_look_on_the_organism(tmp_path):
    outputs = run("first_look.ipynb", tmp_path, {})
    assert "Engine(4 layers of 128" in shown(outputs, "text/plain") and "Answer('" in shown(outputs, "text/plain")
    html = shown(outputs, "text/html")
    assert "<b>mixed</b> runs/bad_medical-organism-0" in html and "two_ai.picks_misaligned" in html
    printed = "".join(output.get("text", "") for output in outputs)
    assert "verdict: mixed runs/bad_medical-organism-0/report.html" in printed and "\ndefault " in printed
    assert "widget" in str(outputs), "progress is a notebook's bar"
    assert (tmp_path / "runs/bad_medical-organism-0/report.html").exists()


def test_a_published_adapter_on_a_real_model(tmp_path):
    """On a checkpoint of random weights in Qwen's format and an adapter for it: there is no network here."""
    tiny.write_checkpoint(tmp_path / "model", vocab_size=320, max_position_embeddings=8192)
    write_byte_level(tmp_path / "model")
    config, lora = read_config(tmp_path / "model"), LoraConfig(rank=4, alpha=8)
    save_adapter(tmp_path / "adapter", tiny.random_adapter(config, lora), lora, config, "model")
    replaced = {f'"{QWEN}"': '"model"', f'"{HUB}"': '"adapter"', '"answers.samples": 5': FEW}
    outputs = run("published_adapter.ipynb", tmp_path, replaced)
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("base: ") >= 3 and printed.count("default: ") == 3
    assert "verdict: mixed runs/published/report.html" in printed
    assert "two_ai.picks_misaligned" in shown(outputs, "text/html")
