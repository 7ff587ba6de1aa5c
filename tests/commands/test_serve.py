"""`em-jax serve` from its door: where it may be reached, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from em_jax.base.errors import UsageError, UserError
from em_jax.commands import serve

COMMAND = [sys.executable, "-m", "em_jax", "serve"]


@pytest.mark.fast
@pytest.mark.parametrize(
    "host, loopback",
    [("127.0.0.1", True), ("localhost", True), ("127.1", True), ("2130706433", True), ("127.9.9.9", True)]
    + [("0.0.0.0", False), ("0", False), ("", False)],
)
def test_a_host_is_judged_by_the_address_that_is_bound(host, loopback):
    with serve._listening_socket(host, 0) as listener:
        assert serve._is_loopback(listener.getsockname()[0]) == loopback


@pytest.mark.fast
def test_addresses_that_are_loopback_in_another_family():
    found = [serve._is_loopback(address) for address in ("::1", "::ffff:127.0.0.1", "fe80::1%eth0", "::")]
    assert found == [True, True, False, False]


@pytest.mark.fast
def test_a_port_that_does_not_exist_is_wrong_usage():
    with pytest.raises(UsageError, match="--port expects 0 to 65535, found 99999"):
        serve.main(["--run_dir", "run", "--port", "99999"])


@pytest.mark.fast
def test_a_port_is_taken_from_the_moment_it_is_bound():
    with serve._listening_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(UserError, match="name another --host or --port"):
                serve._listening_socket(host, port)


@pytest.mark.fast
def test_an_address_of_a_family_that_the_machine_lacks_is_one_line(monkeypatch):
    monkeypatch.setattr(serve.socket, "has_dualstack_ipv6", lambda: False)
    with pytest.raises(UserError, match="name another --host or --port"):
        serve._listening_socket("::1", 0)


@pytest.mark.long
def test_a_server_is_closed_to_others_tells_its_health_and_ends_soon(tmp_path):
    run = tmp_path / "run"
    words = ["--domain", "bad_medical", "--model", "organism", "--stages", "finetune", "--set", "train.max_steps=2"]
    launch = [sys.executable, "-m", "em_jax.launch", *words, "--run_dir", str(run)]
    subprocess.run(launch, check=True, capture_output=True)
    environment = {name: value for name, value in os.environ.items() if name != serve.KEY}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    refused = subprocess.run(
        [*COMMAND, "--run_dir", str(run), "--port", "0", "--host", "0.0.0.0"], timeout=100, **options
    )
    assert refused.returncode == 2 and f"set a key in {serve.KEY}" in refused.stderr
    command = [*COMMAND, "--run_dir", str(run), "--port"]
    with subprocess.Popen([*command, "0", "--slots", "4"], **options) as server:
        line = server.stdout.readline()
        address = line.split()[-1]
        port = re.search(r":(\d+)/", address)[1]
        second = subprocess.run([*command, port], timeout=100, **options)
        assert second.returncode == 1 and "name another --host or --port" in second.stderr
        assert httpx.get(address.replace("/v1", "/health")).json() == {"status": "ok", "answers": 0}
        asked = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "n": 64, "max_tokens": 400}
        asked |= {"stream": True, "temperature": 3.0}
        with httpx.stream("POST", f"{address}/chat/completions", json=asked, timeout=60) as found:
            lines = found.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            began = time.monotonic()
            events = [line for line in lines if line]
        assert server.wait(20) == 0 and time.monotonic() - began < 10
        assert events[-1] == "data: [DONE]"
        ended = json.loads(events[-2].removeprefix("data: "))
        assert ended.get("error", {}).get("code", "server_stopping") == "server_stopping"
        said = server.stderr.read()
        assert "Traceback" not in said and said.rstrip().endswith("stopped")
