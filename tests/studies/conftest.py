import pytest


@pytest.fixture(scope="module", autouse=True)
def unrendered(unrendered):
    """For every test of studies: tests/report and the commands' tests render."""
