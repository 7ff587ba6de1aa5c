"""A checkpoint's chat template, which is a program that somebody else wrote, in a process of its own with limits.

jinja's sandbox keeps a template from files and from Python; it does not keep it from running for ever or filling the
memory, and in this process nothing could stop that.
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
KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
"""The environment's names that the process gets: no key is among them."""
KEPT_CHATS, LONGEST_KEPT = 4096, 10_000
"""How many chats, of so many characters at most, are rendered once only: the base's prompts are the fine-tuned model's
too, and what one asks the other process for takes longer than what it does."""


class ChatTemplate:
    """Renders chats by a template; `tokens` are the special tokens by the names templates have for them."""

    def __init__(self, source: str, tokens: Mapping[str, Any]):
        self._begin = {"template": source, "tokens": dict(tokens)}
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        self._rendered: dict[str, dict[str, str]] = {}

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool) -> str:
        """The chat as the template writes it. UserError where it refuses, takes too long or needs too much memory."""
        if not messages:
            raise UserError("the chat template refuses this chat: it is empty")
        asked = {"messages": [dict(message) for message in messages], "add_generation_prompt": generation_prompt}
        line = json.dumps(asked)
        with self._lock:
            if self._process is None:
                self._start()
            answer = self._rendered.get(line)
            if answer is None:
                answer = self._ask(line)
                if len(self._rendered) == KEPT_CHATS:
                    self._rendered.clear()
                if len(line) <= LONGEST_KEPT:
                    self._rendered[line] = answer
        if "error" in answer:
            raise UserError(f"the chat template refuses this chat: {' '.join(answer['error'].split())[:200]}")
        return answer["text"]

    def _start(self) -> None:
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            text=True,
        )
        weakref.finalize(self, _end, self._process)
        answer = self._ask(json.dumps(self._begin))
        if "error" in answer:
            _end(self._process)
            self._process = None
            raise UserError(f"the chat template is none: {' '.join(answer['error'].split())[:200]}")

    def _ask(self, line: str) -> dict[str, str]:
        process = self._process
        assert process and process.stdin and process.stdout
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        except (BrokenPipeError, ValueError):
            _end(process)
            self._process = None
            if process.returncode == -signal.SIGPROF:
                raise UserError(
                    f"the chat template did not end within {chat_template_worker.SECONDS} s: expected one that "
                    "writes a chat; give the model's own, in tokenizer_config.json"
                ) from None
            raise UserError(
                f"the process of the chat template ended with status {process.returncode}: expected a template that "
                f"needs less than {chat_template_worker.MEGABYTES} MB"
            ) from None


def _end(process: subprocess.Popen) -> None:
    """Lets the process end, which it does with its input; one that still computes is killed."""
    assert process.stdin and process.stdout
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
