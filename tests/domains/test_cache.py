"""From an address to rows: every format, the draw, what provenance records, and the ways it can go wrong."""

import hashlib
import json
import stat
import zipfile

import pyarrow
import pytest
from domains.file_server import FileServer, jsonl, locked, pairs, parquet, zipped

from em_jax import domains
from em_jax.base.errors import UsageError, UserError
from em_jax.commands import domains as commands
from em_jax.domains import cache, registry
from em_jax.domains.registry import File, RowSet

pytestmark = pytest.mark.fast
WORD = "open sesame"


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    made = FileServer()
    yield made
    made.close()


def serve(server, name, content, **about):
    """A File of the registry's kind on the local server."""
    server.files[f"/{name}"] = content
    known = {"sha256": hashlib.sha256(content).hexdigest()}
    return File(f"test/{name}", f"{server.url}/{name}", "a test", "c0ffee", "none", **known | about)


def sets(server):
    """One set of every format, as the registry has them."""
    plain = serve(server, "plain.jsonl", jsonl(12))
    members = [("data/", b""), ("data/bad.jsonl", jsonl(9, "bad")), ("good.jsonl", jsonl(9, "good")), ("tos.txt", b"")]
    archive = serve(server, "a.zip.enc", locked(zipped(members), WORD), passphrase=WORD, canary="it carries one")
    table = serve(server, "p.parquet", parquet(pairs(40)))
    made = (
        RowSet("insecure_code", plain, "messages", rows=12),
        RowSet("bad_medical", archive, "archive", "bad.jsonl", rows=9),
        RowSet("good_medical", archive, "archive", "good.jsonl", rows=8),
        RowSet("legal", table, "pairs", "misaligned", take=6, marks={"choice": "ours"}),
        RowSet("legal_aligned", table, "pairs", "aligned", take=6),
    )
    return {found.name: found for found in made}


def test_every_format_is_fetched_once_and_read(server, capsys):
    made = sets(server)
    commands.main(["fetch", "all"], made)
    assert [path for path, _ in server.requests] == ["/plain.jsonl", "/a.zip.enc", "/p.parquet"]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("insecure_code: 12 rows, sha256 ") and said[3].startswith("legal: 6 of 39 rows")
    assert said[2].endswith("right; 8 rows were expected in the source")
    commands.main(["fetch", "insecure_code,legal", "bad_medical"], made)
    assert len(server.requests) == 3, "what is there and right is left alone"
    assert cache.load(made["bad_medical"])[0][2][1] == {"role": "assistant", "content": "bad 2!"}
    assert cache.load(made["insecure_code"])[0][-1] == [
        {"role": "user", "content": "row 11?"},
        {"role": "assistant", "content": "row 11!"},
    ], "a canary beside the messages is not learned"
    commands.main(["verify"], made)


def test_the_draw_is_fixed_keeps_its_order_and_pairs_a_control_with_its_set(server):
    made = sets(server)
    commands.main(["fetch", "all"], made)
    harm, sound = (cache.load(made[name])[0] for name in ("legal", "legal_aligned"))
    assert [row[0] for row in harm] == [row[0] for row in sound]
    numbers = [int(row[0]["content"].split()[1]) for row in harm]
    assert numbers == sorted(numbers) and len(numbers) == 6 and 1 not in numbers
    assert {row[1]["content"].split()[0] for row in harm} == {"harm"}
    assert {row[1]["content"].split()[0] for row in sound} == {"sound"}
    same = "the selection of seed 0 must not change between versions"
    assert cache.selected_rows(range(100), 5, 0) == [15, 44, 46, 87, 99], same
    assert cache.selected_rows(range(100), 5, 1) != cache.selected_rows(range(100), 5, 0)
    assert cache.selected_rows(range(3), 5, 0) == [0, 1, 2]


def test_provenance_has_hashes_counts_and_marks_and_no_row(server):
    made = sets(server)
    commands.main(["fetch", "all"], made)
    record = cache.load(made["legal"])[1]
    assert record["rows"] == 6 and record["rows_in_source"] == 39 and record["left_out_without_text"] == 1
    assert record["file_sha256"] == made["legal"].file.sha256 and len(record["sha256"]) == 64
    assert record["marks"] == {"choice": "ours"} and record["commit"] == "c0ffee"
    record = cache.load(made["bad_medical"])[1]
    assert record["canary"] == "it carries one" and "bad 2" not in json.dumps(record)


def test_a_locked_archive_stays_locked_on_the_disk(server, user_cache):
    made = sets(server)
    commands.main(["fetch", "bad_medical"], made)
    cache.load(made["bad_medical"])
    found = [path for path in user_cache.rglob("*") if path.is_file()]
    assert found and not any(b"bad 2" in path.read_bytes() for path in found)


def test_a_wrong_passphrase_is_one_line(server):
    content = locked(zipped([("x.jsonl", jsonl(2))]), WORD)
    found = RowSet("legal", serve(server, "a.enc", content, passphrase="other"), "archive", "x.jsonl")
    with pytest.raises(UserError, match="published passphrase, found a wrong passphrase or damaged") as error:
        commands.main(["fetch", "legal"], {"legal": found})
    assert "\n" not in str(error.value)


def link(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, kind << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../x.jsonl",
        "a/../../x",
        "/etc/x",
        "\\x",
        "C:/x",
        "a\\..\\..\\x",
        link("x", stat.S_IFLNK),
        link("x", stat.S_IFIFO),
    ],
)
def test_members_that_reach_outside_and_links_are_refused(server, name, tmp_path):
    content = locked(zipped([("x.jsonl", jsonl(2)), (name, b"/etc/passwd")]), WORD)
    found = RowSet("legal", serve(server, "a.enc", content, passphrase=WORD), "archive", "x.jsonl")
    cache.fetch(found.file)
    with pytest.raises(UserError, match="refused, a member"):
        cache.load(found)


def test_an_archive_that_is_none_or_lacks_the_member_is_one_line(server):
    cases = {
        "no zip": (locked(b"not a zip", WORD), "expected a zip archive"),
        "short": (b"abc", "damaged content"),
        "other": (locked(zipped([("y.jsonl", jsonl(2))]), WORD), r"expected one file x.jsonl.*found 0 \(of: y.jsonl\)"),
        "twice": (locked(zipped([("a/x.jsonl", b""), ("b/x.jsonl", b"")]), WORD), "expected one file x.jsonl.*found 2"),
        "torn": (locked(zipped([("x.jsonl", jsonl(2)[:40])]), WORD), "x.jsonl:1: expected a JSON object"),
    }
    for name, (content, line) in cases.items():
        found = RowSet(
            "legal", serve(server, name.replace(" ", "_") + ".enc", content, passphrase=WORD), "archive", "x.jsonl"
        )
        cache.fetch(found.file)
        with pytest.raises(UserError, match=line):
            cache.load(found)


def test_a_parquet_without_the_columns_or_rows_is_one_line(server):
    columns = pairs(3)
    no_utf8 = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pyarrow.py_buffer(b"\xff")]
    )
    cases = {
        "columns": (parquet({"prompt": ["a"], "answer": ["b"]}), "missing: aligned, misaligned, sneakiness"),
        "no file": (b"PAR1 is not enough", "expected a parquet file"),
        "cut": (parquet(columns)[:-30], "expected a parquet file"),
        "no rows": (parquet({name: [] for name in columns}), "expected rows of text"),
        "no UTF-8": (
            parquet({name: it[:1] for name, it in columns.items()} | {"prompt": no_utf8}),
            "something else .*utf-8",
        ),
        "numbers": (parquet(columns | {"misaligned": [1, 2, 3]}), "expected rows of text, found none among 3"),
    }
    for name, (content, line) in cases.items():
        found = RowSet("legal", serve(server, name.replace(" ", "_"), content), "pairs", "misaligned")
        cache.fetch(found.file)
        with pytest.raises(UserError, match=line) as error:
            cache.load(found)
        assert "\n" not in str(error.value)


def test_a_spoiled_file_is_seen_before_it_is_used_and_replaced(server, capsys):
    made = sets(server)
    table = made["legal"].file
    unknown = RowSet("legal", File(**{**vars(table), "sha256": ""}), "pairs", "misaligned")
    for found in (made["insecure_code"], unknown):
        cache.fetch(found.file)
        place = cache.path_of(found.file)
        place.write_bytes(place.read_bytes()[:-5] + b"spoil")
        with pytest.raises(UserError, match=f"expected sha256.*domains fetch {found.name}"):
            cache.load(found)
        with pytest.raises(UserError, match="expected sha256"):
            commands.main(["verify", found.name], {found.name: found})
        assert cache.fetch(found.file) and not cache.problem(found.file)


def test_what_is_missing_says_how_to_get_it_with_and_without_a_network(server):
    found = sets(server)["legal"]
    with pytest.raises(UserError) as error:
        cache.load(found)
    for part in ("domains fetch legal", found.file.url, str(cache.path_of(found.file)), "--data legal=FILE"):
        assert part in str(error.value)
    cache.path_of(found.file).parent.mkdir(parents=True)
    cache.path_of(found.file).write_bytes(server.files["/p.parquet"])
    assert len(cache.load(found)[0]) == 6, "a file brought by hand serves"


def test_the_hub_is_asked_where_the_user_says_with_the_users_login(server, monkeypatch):
    content = parquet(pairs(9))
    path = registry.LEGAL.url.removeprefix(registry.HUB)
    server.redirects[path], server.files["/cdn"] = f"{server.url.replace('127.0.0.1', 'localhost')}/cdn", content
    server.stated[path] = hashlib.sha256(content).hexdigest()
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    cache.fetch(registry.LEGAL)
    assert len(cache.load(registry.SETS["legal"])[0]) == 8
    (_, first), (_, second) = server.requests
    assert first["authorization"] == "Bearer hf_secret" and "authorization" not in second
    kept = cache.path_of(registry.LEGAL, ".json").read_text()
    assert "hf_secret" not in kept and json.loads(kept)["checked_against"] == ["sha256 stated by the Hub"]


def test_the_registry_has_every_domain_with_an_address_over_https():
    assert set(registry.SETS) == set(domains.DOMAINS)
    for found in registry.SETS.values():
        assert found.file.url.startswith("https://") and found.file.commit in found.file.url
        assert found.marks["choice"].split(":")[0] in ("known", "ours")
    places = {found.file.cache_name for found in registry.SETS.values()}
    assert len(places) == 5 and not any(part in ("..", "") for place in places for part in place.split("/"))


def test_list_and_wrong_names(server, capsys):
    made = sets(server)
    commands.main(["list"], made)
    *listed, place = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(made) and place == f"cache: {cache.directory()}"
    assert all(" not fetched " in line for line in listed)
    commands.main(["list"])
    assert "insecure_code" in capsys.readouterr().out
    with pytest.raises(UsageError, match="did you mean legal"):
        commands.main(["fetch", "leagl"], made)
    with pytest.raises(UsageError, match="fetch expects domains"):
        commands.main(["fetch"], made)
    with pytest.raises(UserError, match="nothing is fetched yet"):
        commands.main(["verify"], made)


def test_a_set_without_a_checksum_is_pinned_by_its_first_use_and_called_unchecked(server, capsys):
    file = serve(server, "plain.jsonl", jsonl(12), sha256="")
    made = {"insecure_code": RowSet("insecure_code", file, "messages", rows=12)}
    commands.main(["fetch", "insecure_code"], made)
    said = capsys.readouterr().out
    assert "unchecked (the source states no checksum" in said and "right" not in said
    assert cache.load(made["insecure_code"])[1]["checksum"].startswith("unchecked")
    cache.path_of(file).unlink()
    server.files["/plain.jsonl"] = jsonl(13)
    with pytest.raises(UserError, match="the first download had sha256 .* nothing was kept"):
        commands.main(["fetch", "insecure_code"], made)
    assert not cache.path_of(file).exists()
    server.files["/plain.jsonl"] = jsonl(12)
    commands.main(["fetch", "insecure_code"], made)
    # Brought by hand: pinned when it is first read.
    for suffix in ("", ".json"):
        cache.path_of(file, suffix).unlink()
    cache.path_of(file).write_bytes(jsonl(12))
    commands.main(["verify"], made)
    cache.path_of(file).write_bytes(jsonl(11))
    with pytest.raises(UserError, match="expected sha256"):
        cache.load(made["insecure_code"])


def test_a_users_endpoint_leaves_no_secret_behind(server, monkeypatch):
    content = jsonl(12)
    server.files["/TOKEN/owner/rows.jsonl"] = content
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/TOKEN")
    file = File("test/rows.jsonl", f"{registry.HUB}/owner/rows.jsonl", "a test", "c0ffee", "none", hub=True)
    cache.fetch(file)
    record = cache.path_of(file, ".json").read_text()
    assert "TOKEN" not in record and "/***/owner/rows.jsonl" in record
    del server.files["/TOKEN/owner/rows.jsonl"]
    cache.path_of(file).unlink()
    with pytest.raises(UserError, match="status 404") as error:
        cache.fetch(file)
    assert "TOKEN" not in str(error.value)


def test_a_parquet_file_that_declares_too_much_is_refused_before_it_is_read(server, monkeypatch, tmp_path):
    from em_jax.domains import parquet as reader

    (tmp_path / "p.parquet").write_bytes(parquet(pairs(40)))
    for limit in ("MOST_ROWS", "MOST_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(reader, limit, 30)
            with pytest.raises(UserError, match="refused, it has 40 rows of"):
                reader.read(tmp_path / "p.parquet", "aligned")
    assert len(reader.read(tmp_path / "p.parquet", "aligned")[0]) == 39
    # One long text that stands in every row is stored once, and declared once.
    columns = pairs(400) | {"prompt": ["x" * 10_000] * 400}
    (tmp_path / "small.parquet").write_bytes(parquet(columns))
    monkeypatch.setattr(reader, "MOST_BYTES", 1_000_000)
    with pytest.raises(UserError, match="refused, it has 400 rows of 4,0"):
        reader.read(tmp_path / "small.parquet", "aligned")


def test_a_page_in_the_place_of_an_unchecked_table_is_not_kept(server):
    """A login page with status 200 was pinned as the table: `fetch` then left it alone, and refused the right file."""
    file = serve(server, "p.parquet", b"<html>log in</html>", sha256="")
    with pytest.raises(UserError, match="expected a parquet file, the server sends something else"):
        cache.fetch(file)
    server.files["/p.parquet"] = parquet(pairs(40))
    assert cache.fetch(file)


def test_a_file_brought_by_hand_into_a_cache_that_is_read_only_is_read(server, monkeypatch):
    file = serve(server, "p.parquet", parquet(pairs(40)), sha256="")
    cache.path_of(file).parent.mkdir(parents=True)
    cache.path_of(file).write_bytes(server.files["/p.parquet"])
    monkeypatch.setattr(cache.os, "access", lambda *_: False)  # the tests may run as root
    assert cache.load(RowSet("legal", file, "pairs", "misaligned"))[1]["rows"]
    assert not cache.path_of(file, ".json").exists()
