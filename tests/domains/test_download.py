"""A file is under its name whole and checked, or it is not there; whatever the server does, one line says what."""

import hashlib
import random

import pytest
from domains.file_server import FileServer

from em_jax.base.errors import UserError
from em_jax.domains.download import download, hashes

pytestmark = pytest.mark.fast
CONTENT = random.Random(0).randbytes(900_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    made = FileServer()
    made.files["/f"] = CONTENT
    yield made
    made.close()


def get(server, place, path="/f", **options):
    return download(server.url + path, place, **{"sleep": lambda seconds: None, "sha256": SHA} | options)


def left(place):
    """What lies in the folder besides locks."""
    return sorted(path.name for path in place.parent.iterdir() if not path.name.endswith(".lock"))


def test_a_file_comes_whole_with_progress_and_leaves_nothing_beside_it(server, tmp_path):
    seen, place = [], tmp_path / "deep" / "f"
    found = get(server, place, sha256=SHA, progress=lambda got, total: seen.append((got, total)))
    assert place.read_bytes() == CONTENT and left(place) == ["f"]
    assert found["sha256"] == SHA and found["bytes"] == len(CONTENT)
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 2


def test_a_cut_connection_goes_on_from_where_it_was(server, tmp_path):
    server.moods["/f"] = [300_000, 200_000]
    get(server, tmp_path / "f", sha256=SHA)
    assert (tmp_path / "f").read_bytes() == CONTENT
    ranges = [headers.get("range") for _, headers in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_goes_on_from_where_an_earlier_one_ended(server, tmp_path):
    server.moods["/f"] = [200_000] + ["503"] * 9
    with pytest.raises(UserError, match=r"status 503, 5 tries.*resumes from there.*by hand"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f").exists() and (tmp_path / "f.partial").stat().st_size == 200_000
    server.moods.clear()
    server.requests.clear()
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT and left(tmp_path / "f") == ["f"]
    assert [headers.get("range") for _, headers in server.requests] == ["bytes=200000-"]


@pytest.mark.parametrize("change", ["ignore range", "other content"])
def test_a_part_that_does_not_fit_is_begun_anew(server, tmp_path, change):
    server.moods["/f"] = [200_000] + ["503"] * 4
    with pytest.raises(UserError):
        get(server, tmp_path / "f")
    if change == "other content":
        server.files["/f"] = CONTENT[::-1]
    else:
        server.moods["/f"] = ["ignore range"]
    get(server, tmp_path / "f", sha256=hashlib.sha256(server.files["/f"]).hexdigest())
    assert (tmp_path / "f").read_bytes() == server.files["/f"]


@pytest.mark.parametrize("checksum", [True, ""], ids=["known checksum", "no checksum"])
def test_a_part_of_another_address_is_not_taken_over(server, tmp_path, checksum):
    server.files["/g"] = CONTENT[::-1]
    server.moods["/f"] = [200_000] + ["503"] * 4
    with pytest.raises(UserError):
        get(server, tmp_path / "f")
    get(server, tmp_path / "f", path="/g", sha256=checksum and hashlib.sha256(CONTENT[::-1]).hexdigest())
    assert (tmp_path / "f").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("name", ["sha256", "git_blob", "stated"])
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, name):
    options = {"sha256": ""} | ({} if name == "stated" else {name: "0" * 40})
    if name == "stated":
        server.redirects["/hub"], server.stated["/hub"] = server.url + "/f", "0" * 64
    with pytest.raises(UserError, match="wrong checksum.*expected.*00000.*found") as error:
        get(server, tmp_path / "f", path="/hub" if name == "stated" else "/f", **options)
    assert left(tmp_path / "f") == [] and "\n" not in str(error.value)


def test_right_checksums_of_every_kind_pass(server, tmp_path):
    server.redirects["/hub"], server.stated["/hub"] = server.url + "/f", SHA
    blob = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    found = get(server, tmp_path / "f", path="/hub", sha256=SHA, git_blob=blob)
    assert found["stated_sha256"] == SHA
    assert hashes(tmp_path / "f") == {"bytes": len(CONTENT), "sha256": SHA, "git_blob": blob}


def test_a_missing_file_is_told_at_once(server, tmp_path):
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/\*\*\*: expected the file, the server answers with status 404"):
        get(server, tmp_path / "f", path="/none")
    assert len(server.requests) == 1 and left(tmp_path / "f") == []


def test_redirects_are_followed_but_not_without_end_and_not_to_plain_http(server, tmp_path):
    server.redirects |= {"/a": server.url + "/b", "/b": server.url + "/f", "/loop": server.url + "/loop"}
    get(server, tmp_path / "f", path="/a")
    assert (tmp_path / "f").read_bytes() == CONTENT
    with pytest.raises(UserError, match="too many redirects"):
        get(server, tmp_path / "g", path="/loop")
    server.redirects["/out"] = "http://example.org/f"
    with pytest.raises(UserError, match="expected an https address"):
        get(server, tmp_path / "g", path="/out")
    with pytest.raises(UserError, match="expected an https address"):
        download("ftp://example.org/f", tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_no_server_at_all_says_what_to_put_where(server, tmp_path):
    address = server.url
    server.close()
    with pytest.raises(UserError, match=f"no connection to 127.0.0.1.*5 tries.*to {tmp_path}/f by hand"):
        download(address + "/f", tmp_path / "f", sleep=lambda seconds: None)
