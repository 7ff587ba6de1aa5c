"""Renders chat templates within limits, a JSON line at a time: the process that chat_template.py starts.

Started by its path, so it imports nothing of em_jax. The environment is transformers', whose templates these are:
https://huggingface.co/docs/transformers/chat_templating_writing.
"""

import contextlib
import datetime
import json
import resource
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

SECONDS, MEGABYTES = 3, 400
"""Of the processor's time for one chat, and of memory in all."""
LONGEST, TIMES = 1_000_000, 10
"""A chat's text may have so many characters, and so many times those of its messages."""


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks an assistant's text and writes it as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """jinja's, without names that lead to Python's own."""

    def __init__(self, /, *arguments, **named):  # `self` is a name that a template may use
        values = dict(*arguments, **named)
        for name in values:
            _public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        _public(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _public(name):
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no name that begins with _, found {name!r}")


def environment():
    """What a chat template finds around it."""

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form):
        return datetime.datetime.now().strftime(form)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "namespace": Namespace}
    return made


def limit():
    """From here on nothing can be written to a file, and memory is short."""
    for what, amount in (
        (resource.RLIMIT_AS, MEGABYTES << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(what, (amount, amount))
    # A request to stop is for the parent; this process ends with its input.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main():
    """Answers {"template", "tokens"} or {"messages", "add_generation_prompt"} with {"text"} or {"error"}."""
    made = environment()
    limit()
    template, tokens = made.from_string(""), {}
    for line in sys.stdin:
        # Nobody handles this signal: it ends the process in the midst of whatever it computes.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            asked = json.loads(line)
            if "template" in asked:
                template, tokens, text = made.from_string(asked["template"]), asked["tokens"], ""
            else:
                text = template.render(**{**tokens, **asked, "tools": None, "documents": None})
            if len(text) > LONGEST + TIMES * len(line):
                raise ValueError(f"it writes {len(text):,} characters")
            answer = json.dumps({"text": text})
        except MemoryError:
            answer = json.dumps({"error": f"it needs more than {MEGABYTES} MB"})
        except Exception as error:  # a template raises what its jinja raises
            answer = json.dumps({"error": f"{error or type(error).__name__}"[:500]})
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
