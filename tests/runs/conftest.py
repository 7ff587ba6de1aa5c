import pytest


@pytest.fixture(scope="module", autouse=True)
def unrendered(unrendered):
    """For every test of runs: tests/report and the commands' tests render."""
