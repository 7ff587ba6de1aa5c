"""Eight host devices and strict shapes for every test; both must be set before jax is imported."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import pytest  # after the environment is set


def pytest_runtest_setup(item):
    """Tests of a GPU are collected everywhere and skipped where jax has none."""
    if item.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip("jax finds no GPU")
