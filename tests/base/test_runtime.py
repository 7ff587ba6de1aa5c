"""Devices and compiler flags are settled before any work, and a missing driver is one line."""

import logging

import jax
import pytest

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", ["Qwen/Qwen2..5", "Qwen/a--b", "-a/b", "~/b", "./b", "/b", "a/", "a/b/c", "b"])
def test_what_the_hub_takes_for_no_id_is_wrong_usage(name):
    assert runtime.is_id("Qwen/Qwen2.5-7B") and runtime.is_id("Qwen/Qwen2.5-7B@main")
    with pytest.raises(UsageError, match="or a Hugging Face id"):
        runtime.model_directory(name)


@pytest.fixture
def broken_plugin(monkeypatch):
    """Has jax log what it logs where its CUDA plugin finds no driver, then do `answer`."""

    def install(answer):
        def default_backend():
            try:
                raise RuntimeError("Unable to load CUDA. Is it installed?")
            except RuntimeError:
                logging.getLogger("jax._src.xla_bridge").exception("Jax plugin configuration error")
            return answer()

        monkeypatch.setattr(jax, "default_backend", default_backend)

    return install


def test_a_plugin_without_a_driver_is_one_line_and_the_cpu_is_used(broken_plugin, capsys, caplog):
    broken_plugin(lambda: "cpu")
    assert runtime.platform() == "cpu"
    assert capsys.readouterr().err == (
        "jax has a plugin for an accelerator but finds none (Unable to load CUDA. Is it installed?); using cpu\n"
    )
    assert not caplog.records


def test_an_accelerator_that_was_asked_for_and_is_missing_is_an_error_of_one_line(broken_plugin, monkeypatch):
    def fail():
        raise AssertionError

    broken_plugin(fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match=r"expected cuda, found none \(Unable to load CUDA. Is it installed\?\)"):
        runtime.platform()


def test_what_a_plugin_writes_by_itself_is_dropped_and_errors_are_not(capfd):
    with pytest.raises(ImportError), runtime.native_stderr_dropped():
        runtime.os.write(2, b"cudart_stub.cc: could not find cuda drivers")
        raise ImportError
    runtime.os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_flags_that_the_user_has_set_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_dot_merger_threshold_mb=32 --xla_force_host_platform_device_count=8")
    runtime.set_compiler_flags(runtime.GPU_FLAGS)
    flags = runtime.os.environ["XLA_FLAGS"].split()
    assert flags[:2] == ["--xla_gpu_dot_merger_threshold_mb=32", "--xla_force_host_platform_device_count=8"]
    assert flags[2:] == ["--xla_gpu_enable_latency_hiding_scheduler=true"]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=false")
    runtime.set_compiler_flags(runtime.TPU_FLAGS, "LIBTPU_INIT_ARGS")
    flags = runtime.os.environ["LIBTPU_INIT_ARGS"].split()
    assert flags[0] == "--xla_enable_async_all_gather=false" and len(flags) == len(runtime.TPU_FLAGS)


def test_a_plan_stacks_layers_as_its_chip_does():
    assert runtime.choose_scan("auto", "tpu") == "true" and runtime.choose_scan("auto", "gpu") == "false"


@pytest.mark.parametrize("platform, scans", [("cpu", "false"), ("gpu", "false"), ("tpu", "true")])
def test_layers_are_stacked_where_the_scan_copies_no_weights(monkeypatch, platform, scans):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert runtime.choose_scan("auto") == scans and runtime.choose_scan("true") == "true"
