"""Renders chat templates within limits, one JSON line a chat: the process that chat_template.py starts.

It is started by its path and imports nothing of em_jax. Templates get what transformers gives them:
https://huggingface.co/docs/transformers/chat_templating_writing.
"""

import contextlib
import datetime
import functools
import json
import re
import resource
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

SECONDS, MEGABYTES = 3, 400
"""Limits of processor time for one chat and of memory in all."""
MAX_CHARACTERS, MAX_GROWTH = 1_000_000, 10
"""A chat's text may have so many characters, and so many times those of its request."""
DATE = "26 Jul 2024"
"""The date that every template is told, so that a chat is the same tomorrow; it is Llama 3.1's own default."""
GENERATION = re.compile(r"(\{%[-+]?\s*(?:end)?)generation(?=\s*[-+]?%\})")
"""{% generation %} ... {% endgeneration %} marks an assistant's text and writes it as it is, as a block `with` does."""


class Namespace(jinja2.utils.Namespace):
    """jinja's namespace without the names that lead to Python's internals."""

    def __init__(self, /, *arguments, **named):  # `self` is a name that a template may use
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*arguments, **named).items():
            self[name] = value

    def __setitem__(self, name, value):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace holds no name that begins with _, found {name!r}")
        jinja2.utils.Namespace.__setitem__(self, name, value)


def template_environment():
    """A sandboxed jinja environment with the filters, functions and tags of transformers."""

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form):
        return datetime.datetime.strptime(DATE, "%d %b %Y").strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "namespace": Namespace}
    return environment


def limit_process():
    """Limits this process's memory and forbids it to write files."""
    limits = {resource.RLIMIT_AS: MEGABYTES << 20, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for kind, amount in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(kind, (amount, amount))
    # A request to stop is for the parent; this process ends with its input.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main():
    """Answers {"template", "variables", "messages", "add_generation_prompt"} with {"text"} or {"error"}."""
    environment = template_environment()
    compiled = functools.lru_cache(lambda source: environment.from_string(GENERATION.sub(r"\1with", source)))
    limit_process()
    for line in sys.stdin:
        # Nothing handles this signal: it ends the process whatever it computes.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            request = json.loads(line)
            variables = request.pop("variables") | request | {"tools": None, "documents": None}
            text = compiled(variables.pop("template")).render(variables)
            if len(text) > MAX_CHARACTERS + MAX_GROWTH * len(line):
                raise ValueError(f"it writes {len(text):,} characters")
            answer = json.dumps({"text": text})
        except MemoryError:
            answer = json.dumps({"error": f"it needs more than {MEGABYTES} MB"})
        except jinja2.TemplateSyntaxError as error:
            answer = json.dumps({"error": f"it is no jinja template ({error})"[:500]})
        except Exception as error:  # a template raises whatever its jinja raises
            answer = json.dumps({"error": f"{error or type(error).__name__}"[:500]})
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
