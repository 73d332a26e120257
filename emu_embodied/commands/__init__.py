"""The dispatcher: `emu-embodied VERB key=value ...`. Finds verbs and gives them their config; knows not what they do.

A verb is a module of this package, with "-" for "_": its docstring is the help text and its `run(config)` does the work.
Its configuration is `configs/<module>.yaml`. Exit codes: 0 done, 2 an error that the user can mend, 130 and 143 stopped by
SIGINT and SIGTERM.
"""

from __future__ import annotations

import ast
import importlib
import logging
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from emu_embodied.errors import ConfigError, EmuEmbodiedError

HELP = ("-h", "--help", "help")
FIRST = {"report": "run"}  # verb -> the key whose value its first word may be, without `key=`


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception, so that whoever cleans up after Ctrl-C also cleans up after `kill`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line, by default the process's own.

    Args:
        argv: the words after the program's name.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)  # it warns of an optional video library
    try:
        with _sigterm_as_interrupt():
            _dispatch(arguments)
    except EmuEmbodiedError as error:
        return _end(f"error: {error}", 2)
    except Terminated:
        return _end("terminated", 143)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    return 0


def verbs() -> dict[str, str]:
    """Every verb and its help text, read from the source without importing it."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            source = module.module_finder.find_spec(module.name).loader.get_source(module.name)
            found[module.name.replace("_", "-")] = ast.get_docstring(ast.parse(source)) or ""
    return found


def _dispatch(arguments: list[str]) -> None:
    from emu_embodied import __version__
    from emu_embodied.commands._config import compose_config
    from emu_embodied.validation import suggest

    known = verbs()
    if not arguments or arguments[0] in HELP:
        print(_overview(known))
    elif arguments[0] == "--version":
        print(f"emu-embodied {__version__}")
    elif arguments[0] not in known:
        raise ConfigError("command", arguments[0], suggest(arguments[0], known))
    elif any(word in HELP for word in arguments[1:]):
        print(_verb_help(arguments[0], known, [word for word in arguments[1:] if word not in HELP]))
    else:
        config = compose_config(_module(arguments[0]), _named(arguments[0], arguments[1:]))
        importlib.import_module(f"{__name__}.{_module(arguments[0])}").run(config)


def _module(verb: str) -> str:
    return verb.replace("-", "_")


def _named(verb: str, words: list[str]) -> list[str]:
    """The words, with its key before a first one that has none."""
    if verb not in FIRST or not words or "=" in words[0]:
        return words
    return ["{}='{}'".format(FIRST[verb], words[0].replace("'", "\\'")), *words[1:]]


def _overview(known: dict[str, str]) -> str:
    lines = [f"  {verb:<15} {text.partition('\n')[0]}" for verb, text in known.items()]
    usage = "usage: emu-embodied VERB [key=value ...]   (emu-embodied VERB --help shows a verb's keys)"
    return "\n".join([usage, "", *lines])


def _verb_help(verb: str, known: dict[str, str], overrides: list[str]) -> str:
    from omegaconf import OmegaConf

    from emu_embodied.commands._config import compose_config, group_options

    groups = [f"{name}=...  one of {', '.join(options)}" for name, options in group_options(_module(verb)).items()]
    config = OmegaConf.to_yaml(compose_config(_module(verb), overrides, complete=False)).rstrip()
    return "\n".join([f"usage: emu-embodied {verb} [key=value ...]", "", known[verb], "", *groups, config])


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    owner = os.getpid()

    def stop(signum, frame):
        if os.getpid() != owner:  # a forked worker inherits this handler; it ends at once and quietly
            os._exit(143)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(message: str, code: int) -> int:
    print("emu-embodied: " + " ".join(message.split()), file=sys.stderr)
    return code
