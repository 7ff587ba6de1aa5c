"""A checkpoint's chat template, a program that somebody else wrote, rendered in a limited process of its own.

jinja's sandbox keeps a template from files and from Python, but not from running for ever or filling the memory, and
nothing in this process could stop that.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base.errors import UserError
from em_jax.untrusted import chat_template_worker

COMMAND = (sys.executable, "-P", str(Path(chat_template_worker.__file__)))
ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
"""The environment variables that the process gets; no key is among them."""
ARGUMENTS: Mapping[str, Any] = {"date_string": chat_template_worker.DATE}
"""The variables of every template beside the chat: today is one date in every run (Llama 3 writes it).

A template that does not use it ignores it. The function strftime_now gives the same date.
"""


class ChatTemplate:
    """Renders chats by a template; `tokens` are the variables that it gets by their names, such as bos_token.

    Its process is started when it is first needed, and ends with this object.
    """

    def __init__(self, source: str, tokens: Mapping[str, Any]):
        self._template = {"template": source, "variables": {**tokens, **ARGUMENTS}}
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool) -> str:
        """The chat as the template writes it. UserError where it refuses, takes too long or needs too much memory."""
        if not messages:
            raise UserError("the chat template refuses this chat: it is empty")
        chat = {"messages": [dict(each) for each in messages], "add_generation_prompt": generation_prompt}
        answer = self._answer(json.dumps(self._template | chat) + "\n")
        if "error" in answer:
            raise UserError(f"the chat template refuses this chat: {' '.join(answer['error'].split())[:200]}")
        return answer["text"]

    def _answer(self, line: str) -> dict[str, str]:
        """The worker's answer to one line. A worker that fails is ended; the next chat starts another."""
        with self._lock:
            process = self._process or self._start()
            assert process.stdin and process.stdout
            self._process = None  # one that is interrupted would give its answer to the next chat
            with contextlib.suppress(BrokenPipeError, ValueError):
                process.stdin.write(line)
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                self._process = process
                return answer
        _end(process)
        is_endless, worker = process.returncode == -signal.SIGPROF, chat_template_worker
        why = f"did not end within {worker.SECONDS} s" if is_endless else f"ended its process ({process.returncode})"
        expected = f"expected one that writes a chat in less time and in {worker.MEGABYTES} MB"
        raise UserError(f"the chat template {why}: {expected}; give the model's own, in tokenizer_config.json")

    def _start(self) -> subprocess.Popen:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=null, env=environment, text=True)
        weakref.finalize(self, _end, process)
        return process


def _end(process: subprocess.Popen) -> None:
    """Closes the process's input, with which it ends; kills one that still computes after a second."""
    with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
        process.communicate(timeout=1)
    process.kill()
    process.wait()
