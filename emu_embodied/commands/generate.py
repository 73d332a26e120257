"""Answers a prompt with text and images: a released Emu3.5 model at one of its tasks.

Text appears as it is written; each image is in the folder as soon as it is whole, and result.json says what stands where.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from emu_embodied.errors import CheckpointError, ConfigError, InputError
from emu_embodied.storage.regular import check_tree

from ._runs import package_versions

if TYPE_CHECKING:
    from emu_embodied.emu35.loading import Emu35

PACKAGES = ("emu-embodied", "torch", "tiktoken", "numpy")
PIXELS = 16  # a side of a visual token
SAMPLING = ("temperature", "top_k", "top_p")


def run(config: DictConfig) -> None:
    """Prints the answer as it comes, and writes it to a folder.

    Raises:
        ConfigError: an unknown task, device or dtype, a value of the wrong type or out of range, or a folder that is taken.
        InputError: a prompt without its text or image, an image that cannot be read, or no room for the answer.
        CheckpointError: a part of the model is missing, damaged, or does not fit the others.
    """
    import torch

    from emu_embodied.device import find_device
    from emu_embodied.emu35.images import image_ids
    from emu_embodied.emu35.prompts import build_prompt, check_parts, find_task
    from emu_embodied.emu35.results import Collector, write_result
    from emu_embodied.generation.interleaved import GenerationConfig, generate

    # Whatever is wrong with the arguments shows here, before minutes of loading.
    task = find_task(config.task)
    if not isinstance(config.prompt, str) or not all(isinstance(file, str) for file in config.images):
        raise ConfigError("prompt, images", f"{config.prompt!r}, {config.images}", "give a text, and files")
    check_parts(task, config.prompt, len(config.images))
    text, image = _sampling(config, task)
    grid = _grid(config)
    pictures = [_read_image(file) for file in config.images]
    dtype, device = _dtype(config.dtype), find_device(config.device, ConfigError)
    folder = _folder(config.out)

    loaded = _load(config, dtype, device)
    context = loaded.model.config.max_position_embeddings
    codes = [_encode(pixels, task.image_area, loaded.vision) for pixels in pictures]
    prompt = build_prompt(task, config.prompt, [image_ids(c, loaded.text.vocabulary) for c in codes], loaded.text)
    grid = grid or ((codes[-1].shape[0], codes[-1].shape[1]) if codes else None)
    grammar = _grammar(config, task, grid, context - len(prompt.ids))
    settings = GenerationConfig(grammar, text, image, context)
    generator = torch.Generator(loaded.model.lm_head.weight.device).manual_seed(config.seed)
    arguments = ([prompt.ids], settings, [prompt.unconditional], generator, loaded.noisy)
    events = generate(loaded.model, loaded.text.vocabulary, *arguments)

    _make(folder)
    begun, collector = time.monotonic(), Collector(loaded.text)
    for event in events:
        print(_printable(collector.add(event)), end="", flush=True)
        _show(event, folder, collector.answers[0], loaded.vision)
    (answer,) = collector.answers
    about = {
        "task": task.name,
        "prompt": config.prompt,
        "prompt_images": list(config.images),
        "prompt_tokens": len(prompt.ids),
        "seed": config.seed,
        "sampling": {"text": _drawn(text), "image": asdict(image), "grammar": asdict(grammar)},
        "versions": package_versions(*PACKAGES),
        "seconds": round(time.monotonic() - begun, 3),
    }
    write_result(folder, answer, about)
    print(f"\ngenerate: {answer.tokens} tokens, {len(answer.images)} images in {about['seconds']:.1f} s: {folder}")


def _load(config: DictConfig, dtype, device) -> Emu35:
    """The released models, or an adapted checkpoint's parts as such."""
    from emu_embodied.emu35.checkpoint import is_adapted, load_adapted
    from emu_embodied.emu35.loading import DIDA, Emu35, load

    folders = [name and str(name) for name in (config.checkpoint, config.vision, config.text)]
    if is_adapted(folders[0]):
        frames, prompts, noisy, *_ = load_adapted(folders[0], dtype=dtype, device=device)
        return Emu35(noisy.transformer, frames.ibq, prompts.text, noisy)
    loaded = load(*folders, dtype=dtype, device=device, quantisation=config.quantisation)
    if config.passes is not None and loaded.noisy is None:
        raise CheckpointError(DIDA, "not in the checkpoint", "it draws token by token only: leave out passes")
    return loaded


def _sampling(config: DictConfig, task):
    """The task's sampling of text and of images, with what the configuration says otherwise."""
    kinds = []
    for kind in ("text", "image"):
        given = {name: config[f"{kind}_{name}"] for name in SAMPLING if config[f"{kind}_{name}"] is not None}
        kinds.append(replace(getattr(task, kind), **given))
    image = kinds[1]
    if config.guidance is not None:
        image = replace(image, guidance=float(config.guidance))
    if config.passes is not None:
        image = replace(image, decoding="dida", passes=config.passes)
    return kinds[0], image


def _drawn(sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in SAMPLING}


def _grid(config: DictConfig) -> tuple[int, int] | None:
    """Height and width in visual tokens, where given."""
    sides = config.height, config.width
    if sides == (None, None):
        return None
    for name, value in zip(("height", "width"), sides, strict=True):
        if value is None or value % PIXELS:
            raise ConfigError(name, value, f"give height and width, both multiples of {PIXELS} px")
    return config.height // PIXELS, config.width // PIXELS


def _grammar(config: DictConfig, task, grid: tuple[int, int] | None, room: int):
    """What the answer may hold, given `room` tokens of context beside the prompt."""
    from emu_embodied.generation.grammar import GrammarConfig, image_length

    if room < 1:
        raise InputError("prompt", f"{-room + 1} tokens too long", "shorten it, or give fewer or smaller images")
    budget = config.tokens or min(task.tokens or room, room)
    images = task.images if config.max_images is None else config.max_images
    if grid is not None and images != 0 and image_length(*grid) >= budget:
        needed = image_length(*grid) + 1
        raise InputError("tokens", budget, f"an image of {grid[0]} x {grid[1]} visual tokens takes {needed}")
    only = task.image_only and images != 0
    return GrammarConfig(budget, images, grid, text=not only, begins_with_image=only)


def _read_image(file: str):
    """Pixels (H, W, 3) uint8 RGB.

    Raises:
        InputError: a file that is missing, no image, or smaller than a visual token.
    """
    from emu_embodied.data.images import load_picture

    pixels = load_picture(file, "images")
    if min(pixels.shape[:2]) < PIXELS:
        raise InputError(
            "images", f"{file}, {pixels.shape[0]} x {pixels.shape[1]} px", f"sides have {PIXELS} px or more"
        )
    return pixels


def _encode(pixels, area: int, vision):
    """Codes (h, w) of an image."""
    from emu_embodied.tokenizers.ibq import preprocess

    return vision.encode(preprocess(pixels, area).to(next(vision.parameters()).device))[0].cpu()


def _show(event, folder: Path, answer, vision) -> None:
    """Says that an image begins; saves it when it is whole."""
    from emu_embodied.emu35.results import image_name, save_image
    from emu_embodied.generation.interleaved import ImageBegun, ImageFinished

    if isinstance(event, ImageBegun):
        name = image_name(len(answer.images))
        print(f"\n[{name}: {event.width * PIXELS} x {event.height * PIXELS} px] ", end="", flush=True)
    elif isinstance(event, ImageFinished):
        save_image(folder / image_name(len(answer.images) - 1), event.codes_HW, vision)
        print(flush=True)


def _printable(text: str) -> str:
    """Without what could steer the terminal."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def _dtype(name: str):
    import torch

    if name not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError("dtype", name, "choose auto, float32, bfloat16 or float16")
    return None if name == "auto" else getattr(torch, name)


def _folder(out: str | None) -> Path:
    """Where the answer goes: a folder that holds none yet."""
    folder = Path(str(out) if out is not None else time.strftime("runs/generate/%Y%m%d-%H%M%S"))
    if (folder / "result.json").exists() or folder.is_file():
        raise ConfigError("out", str(folder), "it is taken; choose another folder")
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_tree(folder, ConfigError)  # an image would be written where a link leads
    except OSError as error:
        raise ConfigError("out", str(folder), f"{error.strerror}; choose a folder that can be written") from None
