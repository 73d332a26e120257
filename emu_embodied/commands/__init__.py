"""The dispatcher: `emu-embodied VERB key=value ...`. Finds verbs and gives them their config; knows not what they do.

A verb is a module of this package, with "-" for "_": its docstring is the help text and its `run(config)` does the work.
Its configuration is `configs/<module>.yaml`. How a command ends, and with which exit code, is `_door`'s business.
"""

from __future__ import annotations

import ast
import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import resources

from emu_embodied.errors import ConfigError

from ._door import end_well

HELP = ("-h", "--help", "help")
FIRST = {"completion": "shell", "report": "run"}  # verb -> the key whose value its first word may be, without `key=`


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line, by default the process's own.

    Args:
        argv: the words after the program's name.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)  # it warns of an optional video library
    return end_well(lambda: _dispatch(arguments))


def verbs() -> dict[str, str]:
    """Every verb and its help text, read from the source without importing it."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            source = (resources.files(__name__) / f"{module.name}.py").read_text(encoding="utf-8")
            found[module.name.replace("_", "-")] = ast.get_docstring(ast.parse(source)) or ""
    return found


def _dispatch(arguments: list[str]) -> None:
    from emu_embodied import __version__
    from emu_embodied.validation import suggest

    from ._config import compose_config
    from ._keys import check_checkpoint

    known = verbs()
    _check_words(arguments)
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
        check_checkpoint(_module(arguments[0]), config)
        importlib.import_module(f"{__name__}.{_module(arguments[0])}").run(config)


def _check_words(words: list[str]) -> None:
    """Refuses what no file could be called, before it becomes part of a path or of a document."""
    for word in words:
        shown = word.encode(errors="backslashreplace").decode()
        if word != shown or "\0" in word:
            raise ConfigError(
                "argument", shown, "it is not UTF-8, or has a null byte: rename the file, or give another"
            )
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("working directory", "it was deleted", "change to a folder that exists") from None


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
    from ._help import verb_help

    first = f" {FIRST[verb].upper()}" if verb in FIRST else ""
    usage = f"usage: emu-embodied {verb}{first} [key=value ...]"
    return "\n".join([usage, "", known[verb], "", verb_help(_module(verb), overrides)])
