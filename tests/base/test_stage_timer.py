"""What a stage's time goes to."""

import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from em_jax.base import host_arrays
from em_jax.base.stage_timer import COMPILING, LOADING, WAITING, Clock, covered

pytestmark = pytest.mark.fast


def test_jax_tells_of_compiling_and_of_waiting():
    """The names of jax's events are its own affair: with others nothing would be heard."""
    clock, x = Clock(), jnp.ones((64, 64))
    with clock.listening():
        host_arrays.to_host(jax.jit(lambda x: jnp.tanh(x @ x) + 0.125)(x))
    assert clock.seconds[COMPILING] > 0 and clock.seconds[WAITING] > 0
    heard = dict(clock.seconds)
    host_arrays.to_host(jax.jit(lambda x: jnp.tanh(x @ x) + 0.25)(x))
    assert clock.seconds == heard


def test_kinds_do_not_overlap_and_other_threads_are_not_counted():
    clock = Clock()
    began = time.monotonic()
    with clock.span(LOADING):
        time.sleep(0.02)
        clock.on_event("/jax/core/compile/backend_compile_duration", 0.01)
        clock.on_event("/em_jax/waiting", 0.002)
        clock.on_event("/jax/another", 5.0)
    whole = time.monotonic() - began
    assert clock.seconds[COMPILING] == 0.01 and clock.seconds[WAITING] == 0.002
    assert 0.008 <= clock.seconds[LOADING] <= whole - 0.012
    beside = threading.Thread(target=clock.on_event, args=("/em_jax/waiting", 9.0))
    beside.start()
    beside.join()
    assert clock.seconds[WAITING] == 0.002


def test_what_others_compile_is_counted_where_they_are_waited_for():
    """Two at once count once, and what was compiled before the waiting does not."""
    clock = Clock()

    def compile_beside(seconds):
        time.sleep(seconds)
        clock.on_event("/jax/core/compile/backend_compile_duration", seconds)

    def both(seconds):
        threads = [threading.Thread(target=compile_beside, args=(each,)) for each in (seconds, seconds / 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both(0.05)
    began = time.monotonic()
    both(0.2)
    time.sleep(0.1)
    waited = time.monotonic() - began
    clock.on_event("/em_jax/waiting", waited)
    assert clock.seconds[COMPILING] == pytest.approx(0.2, abs=0.05)
    assert clock.seconds[COMPILING] + clock.seconds[WAITING] == pytest.approx(waited)
    assert covered([(0, 4), (1, 2), (3, 5), (7, 9)], 1, 8) == 5


def test_what_lanes_compile_is_compiling():
    clock = Clock()
    add = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)
    with clock.listening():
        began = time.monotonic()
        host_arrays.map_in_threads(lambda size: add(jnp.ones((size, 16))), [33, 34, 35], 2)
        took = time.monotonic() - began
    assert took / 3 < clock.seconds[COMPILING] <= took


PEAKS = """
from em_jax.base.stage_timer import PEAK, peak_memory, reset_peak
peaks = [peak_memory()[PEAK]]
for size in (1 << 28, 1 << 27):
    reset_peak()
    block = bytearray(size)
    block[::4096] = b"1" * len(block[::4096])
    peaks.append(peak_memory()[PEAK])
    del block
print(*peaks)
"""


def test_the_peak_memory_is_that_of_the_stage():
    """In a process of its own: what another thread frees meanwhile would count."""
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, env=paths)
    before, large, small = map(int, said.stdout.split())
    assert large - before > 0.9 * (1 << 28)
    assert 0.9 * (1 << 27) < large - small < 1.1 * (1 << 27), "the peak before is forgotten"
