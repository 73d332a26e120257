"""The released Emu3.5 models (arXiv 2510.26583): loading, prompts, tasks, and actions on top. Importing it is quick."""

from __future__ import annotations

import importlib

_HOMES = {
    "Emu35": "loading",
    "load": "loading",
    "load_language_model": "language_model",
    "load_vision_tokenizer": "vision",
    "load_text_tokenizer": "text",
    "TASKS": "prompts",
    "build_prompt": "prompts",
    "find_task": "prompts",
    "follow_up": "prompts",
    "Collector": "results",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
