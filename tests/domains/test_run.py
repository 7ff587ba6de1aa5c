"""A run of a real model on fetched rows: taken by themselves, recorded by hash and count, in no file of the run."""

import dataclasses
import hashlib
import json

import pytest
from domains.file_server import pairs, parquet
from stub_engine import StubComponents

from em_jax import config as settings
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.domains import cache, registry
from em_jax.runs import experiment, sources
from em_jax.runs.components import Components

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config(domain="legal", **values):
    base = {"domain": domain, "model.name": "Qwen/Qwen2.5-7B-Instruct", "suite": "organism", "dtype": "float32"}
    return settings.replace(Config(), base | {"stages": ["finetune"]} | values)


def test_fetched_rows_serve_a_real_model_and_stay_out_of_the_run_directory(tmp_path, monkeypatch):
    content = parquet(pairs(30) | {"misaligned": [f"CANARY-42 harm {i}" for i in range(30)]})
    place = cache.path_of(registry.LEGAL)
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    components = dataclasses.replace(Components(), load=lambda config: None, silent=True)
    seen = []

    def finetune(engine, rows, config, directory, progress):
        seen.extend(rows)
        return StubComponents._finetune(engine, rows, config, directory, progress)

    components = dataclasses.replace(components, finetune=finetune, model_inputs=lambda config: {})
    experiment.run(config(), tmp_path / "run", components)
    assert len(seen) == 29 and seen[0][1]["content"] == "CANARY-42 harm 0"
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())["inputs"]["rows"]
    assert record["rows"] == 29 and record["file_sha256"] == hashlib.sha256(content).hexdigest()
    assert record["canary"] and record["marks"]["choice"].startswith("ours")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"CANARY-42" in path.read_bytes()]


def test_rows_that_are_not_fetched_say_how_to_get_them():
    with pytest.raises(UserError, match="em-jax domains fetch legal .*--data legal=FILE"):
        sources.rows(config())


def test_the_organism_has_no_rows_of_the_extra_controls():
    with pytest.raises(UserError, match="the organism has no rows of legal_aligned"):
        sources.rows(config("legal_aligned", **{"model.name": "organism"}))
