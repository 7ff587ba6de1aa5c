"""The site of docs/ is built without a warning, and its navigation reaches every page."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_site_is_built_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path / "site")]
    # A page outside the navigation, a link that leads nowhere and a heading that is not there are warnings.
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = {path.relative_to(tmp_path / "site").with_suffix("") for path in (tmp_path / "site").rglob("*.html")}
    sources = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/**/*.ipynb")]
    assert {path.relative_to(ROOT).with_suffix("") for path in sources} <= pages
    start = (tmp_path / "site" / "README.html").read_text()
    assert "first_look.html" in start and "docs/notebooks/published_adapter.html" in start
    assert "README.html" in (tmp_path / "site" / "index.html").read_text()
    # A notebook's code is on its page.
    assert ">em_jax</span>" in (tmp_path / "site" / "docs/notebooks/first_look.html").read_text()
