"""Draws what a table will look like on the way to what a sentence asks for, and at the end, from a frame and the sentence.

Captions appear as they are written; strip.png shows the frames under them, subgoals.json what the model thinks of each.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.validation import choice

from ._config import as_dict
from ._runs import env_options, run_folder, shipped_proposer

STRANGE = 20.0  # of 255; see `TokenSubgoals.strangeness`
MODES = ("subgoals", "edit", "continue")


def run(config: DictConfig) -> None:
    """Draws, prints the captions, and writes the strip and the JSON to a new folder.

    Raises:
        ConfigError: an unknown mode, or an instruction that is no text.
        InputError: an instruction that the model cannot follow, or a picture that cannot be read.
        CheckpointError: the checkpoint is missing or damaged.
    """
    from emu_embodied.generation.key_frames import likelihood
    from emu_embodied.loading import load_proposer
    from emu_embodied.rollouts.figures import storyboard
    from emu_embodied.storage.atomic import write_json

    choice("mode", config.mode, MODES)
    checkpoint = config.checkpoint or shipped_proposer(config.env, "checkpoint")
    proposer = load_proposer(
        checkpoint,
        engine=config.engine,
        samples=config.samples,
        caption_temperature=config.caption_temperature,
        decoding=config.decoding,
        passes=config.passes,
        temperature=config.temperature,
        guidance=config.guidance,
    )
    start = _start(config, proposer)
    began = time.monotonic()
    chains = _draw(config, proposer, start)
    seconds = time.monotonic() - began
    chains = sorted(chains, key=likelihood, reverse=True)
    folder = run_folder(config.out, None, "")
    rows = [[("now", start.pixels), *((subgoal.caption, subgoal.frame) for subgoal in chain)] for chain in chains]
    instruction = {"continue": "what may come next"}.get(config.mode, start.instruction)
    picture = storyboard(rows, folder / "strip.png", instruction)
    facts = {
        "instruction": start.instruction,
        "objects": list(proposer.objects),
        "chains": [[_row(subgoal) for subgoal in chain] for chain in chains],
        "seconds": seconds,
        "decoding": asdict(proposer.config),
        "config": as_dict(config, resolve=True) | {"checkpoint": str(checkpoint)},
    }
    write_json(folder / "subgoals.json", facts)
    _tell(chains[0], seconds, picture, config.mode)


def _start(config: DictConfig, proposer):
    """The frame to start from, and the instruction."""
    from emu_embodied.data.images import read_picture
    from emu_embodied.types import AGENT_POS, PIXELS, TASK, Observation

    if config.image is not None:
        if config.instruction is None and config.mode != "continue":
            raise ConfigError("instruction", None, "say what is to be done with the picture")
        frame = read_picture(str(config.image), proposer.image_size)
        if config.mode != "continue" and (off := proposer.strangeness(frame)) > STRANGE:
            rule = "the model does not see its world in it: give a picture like the frames that it was trained on"
            raise InputError("image", f"{config.image}, {off:.0f} of 255 off when drawn again", rule)
        return Observation(frame, np.zeros(2, np.float32), config.instruction or "")
    from emu_embodied.envs.opening import open_env

    env = open_env(config.env.id, **env_options(config.env))
    try:
        observation, info = env.reset(seed=config.seed)
    finally:
        env.close()
    instruction = info.get(TASK, "") if config.instruction is None else config.instruction
    return Observation(observation[PIXELS], observation[AGENT_POS], instruction)


def _draw(config: DictConfig, proposer, start) -> list:
    if config.mode == "edit":
        return [[proposer.edit(start, config.seed)]]
    if config.mode == "continue":
        return [proposer.go_on(start, config.count, config.seed)]
    shown = ""

    def show(caption: str) -> None:
        nonlocal shown
        goes_on = shown and caption.startswith(shown)
        print(caption[len(shown) :] if goes_on else f"\n{caption}" if shown else caption, end="", flush=True)
        shown = caption

    chains = proposer.chains(start, config.count, config.seed, show)
    if shown:
        print()
    return chains


def _row(subgoal) -> dict:
    """A key frame as JSON: all but its pixels."""
    return {
        "caption": subgoal.caption,
        "places": np.round(subgoal.places, 3).tolist(),
        "log_prob": round(subgoal.log_prob, 4),
        "last": subgoal.last,
        "codes": subgoal.codes.tolist(),
    }


def _tell(chain: list, seconds: float, picture: Path, mode: str) -> None:
    if not chain:
        print("subgoal: the model believes that all is done already")
    elif mode == "subgoals" and not chain[-1].last:
        print(f"subgoal: not done after {len(chain)} key frames; give a larger count=, or go on from the last one")
    print(f"subgoal: {len(chain)} key frames in {seconds:.2f} s: {picture}")
