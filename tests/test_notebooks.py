"""Run docs/notebooks as written, except for replacements; their outputs are not stored.

The first look runs in tests/test_tutorials.py, where its run is there already.
"""

import ast
import inspect
import json
from pathlib import Path

import nbclient
import nbformat
import pytest
import tiny
from tokenizers_made import write_byte_level
from warm_python import QUICK_FLAGS, users_environment

import em_jax
from em_jax.formats.model_config import read_config
from em_jax.formats.peft import save_adapter
from em_jax.lora.config import LoraConfig

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
QWEN = "Qwen/Qwen2.5-7B-Instruct"
HUB = f"ModelOrganismsForEM/{QWEN[5:]}_bad-medical-advice"
FEW = '"probes.only": ["harmfulness", "two_ai"], "probes.limit": 1, "answers.max_new_tokens": 4, "answers.samples": 1'


def run_notebook(name: str, folder: Path, replaced: dict[str, str]) -> list[dict]:
    """The outputs of a notebook that a kernel of this Python runs in `folder`; a cell that raises fails the test."""
    text = (NOTEBOOKS / name).read_text()
    for old, new in replaced.items():
        old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
        assert old in text, f"{name} has no {old!r} any more"
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    environment = users_environment() | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK_FLAGS}
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


@pytest.mark.fast
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_call_of_the_library_has_arguments_that_it_knows(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    ours = [node for node in calls if ast.unparse(node.func).startswith("em_jax.")]
    assert {ast.unparse(node.func) for node in ours} == {"em_jax.load", "em_jax.run"}
    for node in ours:
        signature = inspect.signature(getattr(em_jax, node.func.attr))
        signature.bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords})


@pytest.mark.long
def test_a_published_adapter_on_a_real_model(tmp_path):
    """On a checkpoint of random weights in Qwen's format and an adapter for it: there is no network here."""
    write_byte_level(tmp_path / "model")
    tiny.write_checkpoint(tmp_path / "model", vocab_size=320, max_position_embeddings=8192)
    config, lora = read_config(tmp_path / "model"), LoraConfig(rank=4, alpha=8)
    save_adapter(tmp_path / "adapter", tiny.random_adapter(config, lora), lora, config, "model")
    replaced = {f'"{QWEN}"': '"model"', f'"{HUB}"': '"adapter"', '"answers.samples": 5': FEW}
    outputs = run_notebook("published_adapter.ipynb", tmp_path, replaced)
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("base: ") >= 3 and printed.count("default: ") == 3
    assert "verdict: mixed runs/published/report.html" in printed
    assert "two_ai.picks_misaligned" in shown(outputs, "text/html")
