"""Pages that mkdocs takes from elsewhere: commands and keys from the code, and files of the repository that pages link to.

Knows mkdocs' events and what `emu-embodied VERB --help` is made of. mkdocs.yml names this file; it is no page itself.
"""

from __future__ import annotations

import html
import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

from emu_embodied.commands import FIRST, verbs
from emu_embodied.commands._help import MUST, Key, Section, describe

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = "reference/commands"
PAGES = {"CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}  # a file of the repository -> its page
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
logger = logging.getLogger("mkdocs.hooks")


def on_config(config):
    """Puts a page for each verb into the navigation, after the others of the reference."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    pages = [{f"emu-embodied {verb}": f"{COMMANDS}/{verb}.md"} for verb in verbs()]
    reference.append({"Commands and keys": [f"{COMMANDS}/index.md", *pages]})
    return config


def on_files(files: Files, config) -> Files:
    """Adds the generated pages, and every file outside docs/ that a page links to."""
    texts = {f"{COMMANDS}/{verb}.md": verb_page(verb, text) for verb, text in verbs().items()}
    texts[f"{COMMANDS}/index.md"] = overview(verbs())
    texts |= {page: (ROOT / name).read_text() for name, page in PAGES.items()}
    for place, text in texts.items():
        files.append(File.generated(config, place, content=text))
    for file in list(files.documentation_pages()):
        origin = next((name for name, page in PAGES.items() if page == file.src_uri), f"docs/{file.src_uri}")
        for link in LINK.findall(file.content_string):
            target = _target(origin, link)
            if _outside(target) and (ROOT / target).is_file() and f"files/{target}" not in files.src_uris:
                files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Has links that lead out of docs/ point to the site's copies; they work on a code host as they are."""
    here = page.file.src_uri
    origin = next((name for name, place in PAGES.items() if place == here), f"docs/{here}")

    def moved(found: re.Match) -> str:
        target = _target(origin, found[1])
        if target.startswith("docs/"):
            place = target.removeprefix("docs/")
        elif target in PAGES:
            place = PAGES[target]
        elif f"files/{target}" in files.src_uris:
            place = f"files/{target}"
        else:
            return found[0]  # mkdocs warns of it
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)


def verb_page(verb: str, text: str) -> str:
    """A verb's page: its docstring, and its keys as `--help` has them."""
    name, first = verb.replace("-", "_"), f" {FIRST[verb].upper()}" if verb in FIRST else ""
    own, *groups = describe(name)
    lines = [f"# emu-embodied {verb}", "", text, "", f"`emu-embodied {verb}{first} [key=value ...]`", ""]
    lines += ["## Keys", "", *_table(own.keys)]
    for section in groups:
        lines += _group(name, section)
    return "\n".join(lines) + "\n"


def overview(known: dict[str, str]) -> str:
    """The page that lists the verbs."""
    lines = ["# Commands and keys", "", "Made from the code and the comments of `configs/`, like `emu-embodied VERB --help`."]
    lines += ["", "| command | what it does |", "|---|---|"]
    lines += [f"| [`{verb}`]({verb}.md) | {_cell(text.partition(chr(10))[0])} |" for verb, text in known.items()]
    return "\n".join(lines) + "\n"


def _group(verb: str, section: Section) -> list[str]:
    """The options of a group, and the keys of each that has others than the default one."""
    group, shown = section.group, {key.name for key in section.keys}
    lines = ["", f"## {group.name}=", "", f"{group.text or 'An option'}; `{group.default}` by default.", ""]
    lines += ["| option | what it is |", "|---|---|"]
    lines += [f"| `{option}` | {_cell(title)} |" for option, title in section.options.items()]
    if section.keys:
        lines += ["", f"### Keys of {group.name}={group.default}", "", *_table(section.keys)]
    for option in section.options:
        if option != group.default:
            sections = describe(verb, [f"{group.name}={option}"])
            keys = next(other.keys for other in sections if other.group and other.group.name == group.name)
            further = [key for key in keys if key.name not in shown]
            if further:
                lines += ["", f"### Further keys of {group.name}={option}", "", *_table(further)]
    return lines


def _table(keys: list[Key]) -> list[str]:
    if not keys:
        return ["It has none of its own."]
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for key in keys:
        default = "must be given" if key.default == MUST else f"`{key.default}`" if key.default else ""
        example = f"; for example `{key.name}={key.example}`" if key.example else ""
        lines.append(f"| `{key.name}` | {default} | {_cell(key.text)}{example} |")
    return lines


def _cell(text: str) -> str:
    """A text that Markdown leaves as it is; what stands between backquotes is code already."""
    plain = text.split("`")
    plain[::2] = [html.escape(part, quote=False).replace("|", "&#124;").replace("[", "&#91;") for part in plain[::2]]
    return "`".join(plain)


def _target(origin: str, link: str) -> str:
    """The place in the repository that a link of a file in it leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _outside(target: str) -> bool:
    return not target.startswith(("docs/", "..")) and target not in PAGES
