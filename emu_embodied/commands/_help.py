"""What there is to say of a verb's keys: default, meaning, an example. Knows no verb.

All of it comes from the comments of `configs/`, the one place where keys are explained. A comment stands behind its key, or in
the lines above it, and may end in an example: `steps: 40  # actions per episode; e.g. 60`. A file's first comment says what it
is. A key that a group's chosen option does not explain is explained by another option of the group.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from . import _config

EXAMPLE = "; e.g. "
MUST = "???"


@dataclass(frozen=True)
class Key:
    """A key, as the command line has it.

    Attributes:
        name: dotted.
        default: "???" where a value must be given.
        text: what it is.
        example: another value; empty where there is none.
    """

    name: str
    default: str
    text: str = ""
    example: str = ""


@dataclass(frozen=True)
class Section:
    """Keys that belong together: a verb's own, or those of a group's chosen option.

    Attributes:
        keys: in their order.
        group: the key whose value chooses the option; None for the verb's own.
        options: the group's, and what each is.
    """

    keys: list[Key]
    group: Key | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """A file of `configs/`: what it is, the comment of each of its keys, and the options it has by default."""

    title: str
    comments: dict[str, str]
    defaults: dict[str, str]


def describe(verb: str, words: Collection[str] = ()) -> list[Section]:
    """All keys of a verb, as they are with these words of the command line; its own come first.

    Args:
        verb: the name of a file in `configs/`.
        words: as for `compose_config`.

    Raises:
        ConfigError: an unknown word; see `compose_config`.
    """
    values = _config.as_dict(_config.compose_config(verb, words, complete=False), resolve=True)
    own, asked = _read(f"{verb}.yaml", ""), {key: value for key, _, value in (word.partition("=") for word in words)}
    texts, groups = dict(own.comments), {}
    for name, options in _config.group_options(verb).items():
        files = {option: _read(f"{name}/{option}.yaml", f"{name}.") for option in options}
        chosen = asked.get(name, own.defaults.get(name, ""))
        groups[name] = (chosen, files)
        for option in sorted(options, key=lambda option: (option != chosen, option != own.defaults.get(name))):
            for key, text in files[option].comments.items():
                known = texts.get(key) or text.partition(EXAMPLE)[0]
                texts[key] = known + ("" if EXAMPLE in known else "".join(text.partition(EXAMPLE)[1:]))
    keys = {name: _key(name, value, texts) for name, value in _shown(values, texts) if name not in groups}
    sections = []
    for name, (chosen, files) in groups.items():
        there = files[chosen].comments if chosen in files else {}
        theirs = [keys.pop(key) for key in list(keys) if key in there and key not in own.comments]
        group = _key(name, chosen, texts | {name: own.comments.get(name, "")})
        sections.append(Section(theirs, group, {option: file.title for option, file in files.items()}))
    return [Section(list(keys.values())), *sections]


def verb_help(verb: str, words: Collection[str] = ()) -> str:
    """The keys of a verb as text, one after the other.

    Raises:
        ConfigError: see `describe`.
    """
    own, *groups = describe(verb, words)
    lines = ["keys:", *_lines(own.keys)]
    for section in groups:
        assert section.group is not None  # but for the verb's own, which come first
        name, chosen = section.group.name, section.group.default
        lines += ["", f"{name}=...  {section.group.text or 'an option'}: one of"]
        lines += [line for option, title in section.options.items() for line in _wrap(f"  {option:<12} {title}", 15)]
        if section.keys:
            lines += ["", f"keys of {name}={chosen}:", *_lines(section.keys)]
    return "\n".join(lines)


def as_word(value: Any) -> str:
    """A value as Hydra's override syntax has it."""
    if isinstance(value, list):
        return f"[{','.join(map(as_word, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{as_word(item)}" for name, item in value.items()) + "}"
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf")
    return value if plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _lines(keys: list[Key]) -> Iterator[str]:
    for key in keys:
        yield f"  {key.name}=" + ("...  must be given" if key.default == MUST else key.default)
        yield from _wrap(f"      {key.text}", 6)
        if key.example:
            yield f"      Example: {shlex.quote(f'{key.name}={key.example}')}"


def _wrap(line: str, indent: int) -> list[str]:
    width = min(110, shutil.get_terminal_size((100, 24)).columns)
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _key(name: str, value: Any, texts: Mapping[str, str]) -> Key:
    text, _, example = texts.get(name, "").partition(EXAMPLE)
    return Key(name, MUST if value == MUST else as_word(value), text, example)


def _shown(tree: Mapping[str, Any], texts: Mapping[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a mapping of which no key is explained is one value."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and any(text and other.startswith(f"{key}.") for other, text in texts.items()):
            yield from _shown(value, texts, f"{key}.")
        else:
            yield key, value


def _read(name: str, prefix: str) -> _File:
    """A file's comments; its keys have the prefix of its package, by default this one."""
    text = resources.files(_config.CONFIGS).joinpath(name).read_text(encoding="utf-8")
    lines, root = text.split("\n"), yaml.compose(text, yaml.SafeLoader)
    head = [line.removeprefix("#").strip() for line in lines[: root.start_mark.line]]
    package = next((line.removeprefix("@package ") for line in head if line.startswith("@package ")), None)
    prefix = prefix if package is None else "" if package == "_global_" else f"{package}."
    title = next((line for line in head if not line.startswith("@package ")), "")
    comments = {f"{prefix}{key}": comment for key, comment in _comments(root, lines)}
    chosen = [item for key, node in root.value if key.value == "defaults" for item in node.value]
    pairs = [pair for item in chosen if isinstance(item, yaml.MappingNode) for pair in item.value]
    comments |= {key.value: comment for item in chosen for key, comment in _comments_of(item, lines)}
    return _File(title, comments, {key.value: node.value for key, node in pairs})


def _comments_of(item: yaml.Node, lines: list[str]) -> Iterator[tuple[yaml.Node, str]]:
    """Each key of a mapping, and its comment."""
    for key, value in item.value if isinstance(item, yaml.MappingNode) else ():
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if block else value.end_mark
        behind = lines[end.line][end.column :].strip().removeprefix(":").strip()
        above, line = [], key.start_mark.line - 1
        while line > 0 and lines[line].lstrip().startswith("#") and not _is_head(lines, line):
            above.insert(0, lines[line].strip("# "))
            line -= 1
        yield key, " ".join(above) if above else behind.lstrip("# ") if behind.startswith("#") else ""


def _is_head(lines: list[str], line: int) -> bool:
    """Whether a line belongs to the comments that a file begins with."""
    return all(above.startswith("#") for above in lines[: line + 1])


def _comments(node: yaml.Node, lines: list[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of a mapping and of those in it, each with its comment."""
    for (key, comment), (_, value) in zip(_comments_of(node, lines), node.value, strict=True):
        name = f"{prefix}{key.value}"
        if name != "defaults":
            yield name, comment
            if isinstance(value, yaml.MappingNode):
                yield from _comments(value, lines, f"{name}.")
