"""Prints what a shell needs to complete this command: its verbs, their keys, and the values of keys that have few.

In bash `source <(emu-embodied completion bash)`, in zsh the same with zsh, in fish `emu-embodied completion fish | source`;
a line of ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish makes it last.
"""

from __future__ import annotations

import functools
import shlex

from omegaconf import DictConfig

from emu_embodied.validation import choice

Texts = dict[str, str]
Values = dict[tuple[str, str], list[str]]
BASH = r"""
_emu_embodied() {
  local line=${COMP_LINE:0:COMP_POINT} word before verb values
  word=${line##*[[:space:]]}; before=(${line%"$word"}); verb=${before[1]}
  if ((${#before[@]} < 2)); then COMPREPLY=($(compgen -W '@VERBS@' -- "$word")); return; fi
  if [[ $word != *=* ]]; then
    case $verb in
@KEYS@
    esac
    COMPREPLY=($(compgen -W "$values" -- "$word")); compopt -o nospace 2>/dev/null; return
  fi
  case $verb:${word%%=*} in
@VALUES@
  esac
  if [[ $values ]]; then COMPREPLY=($(compgen -W "$values" -- "${word#*=}"))
  else COMPREPLY=($(compgen -f -- "${word#*=}")); compopt -o filenames 2>/dev/null; fi
  [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/${word%%=*}=}")
}
complete -F _emu_embodied emu-embodied
"""
ZSH = r"""#compdef emu-embodied
_emu_embodied() {
  local -a found
  if ((CURRENT == 2)); then found=(@VERBS@); _describe verb found; return; fi
  if [[ $PREFIX != *=* ]]; then
    case $words[2] in
@KEYS@
    esac
    _describe key found -S ''; return
  fi
  local key=${PREFIX%%=*}; compset -P '*='
  case $words[2]:$key in
@VALUES@
    *) _files;;
  esac
}
compdef _emu_embodied emu-embodied
"""


def run(config: DictConfig) -> None:
    """Prints the script.

    Raises:
        ConfigError: an unknown shell.
    """
    shell = choice("shell", config.shell, tuple(SHELLS))
    print(SHELLS[shell](*_gather()).strip())


@functools.cache
def _gather() -> tuple[Texts, dict[str, Texts], Values]:
    """The verbs, and the words after each, with what they are; by verb and key the values, where they are a few words."""
    from . import verbs
    from ._help import describe

    known = {verb: text.partition("\n")[0] for verb, text in verbs().items()}
    keys, values = {}, {}
    for verb in known:
        sections = describe(verb.replace("-", "_"))
        groups = {section.group: section.options for section in sections if section.group}
        plain = [key for section in sections for key in section.keys]
        keys[verb] = {f"{key.name}=": key.text for key in (*groups, *plain)}
        values |= {(verb, group.name): list(options) for group, options in groups.items()}
        values |= {(verb, key.name): found for key in plain if (found := _values(key.name, key.default))}
    return known, keys | {"completion": dict.fromkeys(SHELLS, "")}, values  # its first word needs no key


def _values(name: str, default: str) -> list[str]:
    if name == "checkpoint":
        from emu_embodied.shipped import shipped_checkpoints

        return shipped_checkpoints()
    return ["true", "false"] if default in ("true", "false") else []


def _bash(known: Texts, keys: dict[str, Texts], values: Values) -> str:
    of_keys = [f"      {verb}) values={shlex.quote(' '.join(words))};;" for verb, words in keys.items()]
    of_values = [f"    {verb}:{key}) values={shlex.quote(' '.join(words))};;" for (verb, key), words in values.items()]
    return _fill(BASH, " ".join(known), of_keys, of_values)


def _zsh(known: Texts, keys: dict[str, Texts], values: Values) -> str:
    def described(words: Texts) -> str:
        return " ".join(shlex.quote(f"{word}:{text}") for word, text in words.items())

    of_keys = [f"      {verb}) found=({described(words)});;" for verb, words in keys.items()]
    of_values = [f"    {verb}:{key}) compadd -- {' '.join(words)};;" for (verb, key), words in values.items()]
    return _fill(ZSH, described(known), of_keys, of_values)


def _fish(known: Texts, keys: dict[str, Texts], values: Values) -> str:
    def line(condition: str, words: str, text: str) -> str:
        text = " ".join(text.replace("\\", "").replace("'", "\\'").split())
        return f"complete -c emu-embodied -n {shlex.quote(condition)} -a '{words}'" + (f" -d '{text}'" if text else "")

    lines = [line("__fish_use_subcommand", verb, text) + " -f" for verb, text in known.items()]
    for verb, words in keys.items():
        for word, text in words.items():
            choices = values.get((verb, word[:-1]), [])
            lines.append(line(f"__fish_seen_subcommand_from {verb}", word, text))
            lines += [line(f"__fish_seen_subcommand_from {verb}", f"{word}{choice}", "") for choice in choices]
    return "\n".join(lines)


def _fill(script: str, verbs: str, keys: list[str], values: list[str]) -> str:
    return script.replace("@VERBS@", verbs).replace("@KEYS@", "\n".join(keys)).replace("@VALUES@", "\n".join(values))


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
