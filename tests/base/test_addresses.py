"""What of an address may be written: what is known to be harmless, and nothing else."""

import pytest

from em_jax import config as settings
from em_jax.base.addresses import public
from em_jax.config import Config
from em_jax.runs import preflight

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1/"),
        ("https://name:SECRET@example.org/v1", "https://example.org/v1"),
        ("https://example.org/v1?api-version=2024-10-21&key=SECRET#SECRET", "https://example.org/v1"),
        ("https://gateway.example.org/v1/SECRET/openai", "https://gateway.example.org/v1/***/openai"),
        ("https://hooks.example.org/services/T0/B0/SECRET", "https://hooks.example.org/***/***/***/***"),
        ("https://host/v1;token=SECRET", "https://host/***"),
        ("https://a@b@example.org:443/api", "https://example.org:443/api"),
        ("https://[::1]:8000/v1", "https://[::1]:8000/v1"),
        ("https://[half/SECRET", "***"),
        ("runs/of mine", "runs/of mine"),
    ],
)
def test_only_known_parts_of_an_address_are_shown(address, shown):
    assert public(address) == shown


def test_settings_are_stored_without_secrets_and_still_compared():
    secret = {"judge.kind": "openai", "judge.url": "https://u:SECRET@host/v1?key=SECRET", "judge.model": "m"}
    secret |= {"judge.also": ["m@https://SECRET@host/v1/SECRET"]}
    config = settings.replace(Config(), secret)
    text = settings.to_toml(config)
    assert "SECRET" not in text and "https://host/v1" in text
    stored = settings.dotted(settings.tomllib.loads(text))
    assert preflight.differing_settings(stored, config) == []
    assert preflight.differing_settings(stored, settings.replace(config, {"judge.url": "https://other/v1"})) == [
        "judge.url"
    ]
