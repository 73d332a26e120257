"""Composes a verb's configuration from `configs/` and `key=value` words, strictly. Knows Hydra, and no verb.

Stricter than Hydra: only keys that exist can be set, to values of the default's type. Nothing here or elsewhere
instantiates a `_target_`.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import fields
from importlib import resources
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emu_embodied.errors import ConfigError
from emu_embodied.storage.schema import build
from emu_embodied.validation import suggest

from ._keys import check_keys

CONFIGS = "emu_embodied.configs"
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}
RENAMED = {  # what keys were called before -> what they are called now
    "root": "out",
    "max_steps": "steps",
    "recipe.trajectory.untold": "recipe.trajectory.unconditional",
    "language.untold": "language.unconditional",
}
QUOTING = "write key=value; quote a text with unusual characters, key=\"'a, b!'\", and write lists as key=[a,b]"


def compose_config(verb: str, overrides: Collection[str], complete: bool = True) -> DictConfig:
    """The configuration of a verb.

    Args:
        verb: the name of a file in `configs/`.
        overrides: words like "seed=7", or "env=tabletop" for a group.
        complete: resolve interpolations and insist on values for keys without a default ("???").

    Raises:
        ConfigError: an unknown key, group option or override syntax, or a value of the wrong type.
    """
    with initialize_config_module(CONFIGS, version_base="1.3"):
        try:
            groups = _group_options(CONFIGS, verb)
            overrides, notices = _renamed(verb, overrides)
            keys = {word: _check_word(word) for word in overrides}
            chosen = [word for word, key in keys.items() if key in groups]
            for word in chosen:
                _check_choice(word, groups[keys[word]])
            defaults = _defaults(CONFIGS, verb, tuple(chosen))
            own = "env.id" in keys.values()  # an env that we do not know, and whose options neither
            for word, key in keys.items():
                if own and key.startswith("env.options.") and key not in defaults:
                    overrides[overrides.index(word)] = f"+{word}"
                elif key not in groups and key not in defaults:
                    raise ConfigError("key", key, _suggested(verb, key, {**groups, **defaults}))
            config = compose(verb, overrides)
            if complete:
                _fill_in(config)
        except ConfigError:
            raise
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of a group that is null
            raise ConfigError("arguments", " ".join(overrides), str(error).partition("\n")[0]) from None
    leaves = list(_leaves(as_dict(config)))
    for key, value in leaves:
        _check_type(key, value, defaults.get(key))
    if complete:
        check_keys(verb, leaves, defaults)
    for notice in notices:
        print(notice, file=sys.stderr)
    return config


def as_dict(config: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """A configuration's values as plain dicts, lists, texts and numbers; interpolations as they stand, or resolved."""
    found = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def group_options(verb: str) -> dict[str, list[str]]:
    """The config groups that a verb uses, each with its options."""
    with initialize_config_module(CONFIGS, version_base="1.3"):
        return _group_options(CONFIGS, verb)


def typed[Options](kind: type[Options], values: DictConfig, key: str = "", apart: Collection[str] = ()) -> Options:
    """A part of a configuration as the dataclass that its schema is (a "structured config" of Hydra's).

    Args:
        kind: the dataclass.
        values: has its fields; those with a default may be absent.
        key: of the part, for errors; empty for the whole configuration, of which only the class's fields are taken.
        apart: what else stands in the part.

    Raises:
        ConfigError: a key that the class has not, one that it needs, a value of another type, or what the class refuses.
    """
    own = [option.name for option in fields(cast(Any, kind)) if option.init]
    wanted = [name for name in map(str, values) if (name not in apart if key else name in own)]
    schema = _writable(OmegaConf.structured(kind))
    try:
        merged = OmegaConf.merge(schema, OmegaConf.masked_copy(values, wanted))
        found = OmegaConf.to_container(OmegaConf.masked_copy(cast(DictConfig, merged), own), throw_on_missing=True)
    except OmegaConfBaseException as error:
        place, rule = str(error.full_key), str(error).partition("\n")[0]
        raise ConfigError(f"{key}.{place}".lstrip("."), OmegaConf.select(values, place), rule) from None
    return build(kind, found, key, ConfigError)


def _writable(schema: DictConfig) -> DictConfig:
    """The schema of a frozen dataclass, without OmegaConf's refusal to put lists into it."""
    OmegaConf.set_readonly(schema, None)
    for part in map(schema._get_node, schema):
        if isinstance(part, DictConfig) and part._metadata.flags:
            _writable(part)
    return schema


@functools.cache
def env_defaults() -> dict[str, dict[str, Any]]:
    """Every option of the group `env`, as its file has it."""
    folder = resources.files(CONFIGS) / "env"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): yaml.safe_load(entry.read_text(encoding="utf-8")) for entry in files}


@functools.cache
def _defaults(configs: str, verb: str, chosen: tuple[str, ...]) -> dict[str, Any]:
    """Every dotted key with its default, where these options of groups are chosen."""
    return dict(_leaves(as_dict(compose(verb, list(chosen)))))


@functools.cache
def _group_options(configs: str, verb: str) -> dict[str, list[str]]:
    choices = compose(verb, return_hydra_config=True).hydra.runtime.choices
    loader = GlobalHydra.instance().config_loader()
    names = sorted(name for name in choices if not name.startswith("hydra/"))
    return {name: loader.get_group_options(name.partition("@")[0]) for name in names}


def _check_word(word: str) -> str:
    """The key of a "key=value" word."""
    key = re.match(r"([A-Za-z_][\w./@]*)=", word)
    try:
        if key and not OverridesParser.create().parse_override(word).is_sweep_override():
            return key[1]
    except (HydraException, RecursionError):
        pass
    except ValueError:
        raise ConfigError(word.partition("=")[0], word.partition("=")[2], "a number has at most 4,300 digits") from None
    raise ConfigError("argument", word, QUOTING)


def _renamed(verb: str, words: Collection[str]) -> tuple[list[str], list[str]]:
    """The words with today's names of keys, and for each old one the line that says so."""
    found, notices = [], []
    for word in words:
        key, _, value = word.partition("=")
        new, known = RENAMED.get(key), _defaults(CONFIGS, verb, ()) if key in RENAMED else {}
        if new in known and key not in known:
            notices.append(f"emu-embodied: {key}= is now called {new}=")
            word = f"{new}={value}"
        found.append(word)
    return found, notices


def _check_choice(word: str, options: list[str]) -> None:
    group, _, option = word.partition("=")
    if option not in options:
        raise ConfigError(group, option, suggest(option, options))


def _suggested(verb: str, key: str, known: Collection[str]) -> str:
    """A remedy for an unknown key: those that end in it, else the nearest; and the keys at the top, for all are many."""
    ending = [name for name in known if name.endswith(f".{key}")]
    top = suggest(key, [name for name in known if "." not in name])
    nearest = difflib.get_close_matches(key, known, 1)
    meant = f"did you mean {' or '.join(ending or nearest)}? " if ending or nearest else ""
    return f"{meant}{top[top.index('choose among') :]}, or what is below them (emu-embodied {verb} --help)"


def _fill_in(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(missing[0], "not given", f"it has no default: give {missing[0]}=...")
    OmegaConf.resolve(config)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value, mappings included."""
    for name, value in tree.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")


def _check_type(key: str, value: Any, default: Any) -> None:
    """Refuses a value of another type than its default; null, "???" and interpolated defaults accept any."""
    if isinstance(value, float) and not math.isfinite(value) and value != default:
        raise ConfigError(key, value, "give a finite number")
    if default is None or (isinstance(default, str) and ("???" == default or "${" in default)):
        return
    if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
        quoted = f" (quoted, {key}=\"'{value}'\")" if isinstance(default, str) else ""
        raise ConfigError(key, value, f"give {KINDS[type(default)]}{quoted}, like {default!r}")
