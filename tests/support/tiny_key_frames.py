"""A tiny model that draws key frames from words."""

import functools

import torch
from recorded_play import cache, pushed_left
from tiny import WORLD, tiny_world_model

from emu_embodied.data.subgoals import SubgoalRows
from emu_embodied.generation.key_frames import SubgoalDecoding, TokenSubgoals
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.rollouts.goals.hindsight_tabletop import HindsightConfig, relabel
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.key_frame_batches import LanguageConfig
from emu_embodied.training.stages.language import with_prompts
from emu_embodied.world_model import TokenWorldModel

SIZES = LanguageConfig(batch=4, instruction_length=14, caption_length=20, text_size=400)


@functools.cache
def rows() -> SubgoalRows:
    return relabel(cache([pushed_left()] * 3), HindsightConfig(held_out=()))


def world_model(seed: int = 0) -> TokenWorldModel:
    """A tiny world model with random weights and room for prompts."""
    plain = tiny_world_model(seed, context=0)
    text = TextTokenizer.train(rows().texts(), SIZES.text_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = with_prompts(plain.model, text, SIZES).eval()
    torch.nn.init.constant_(model.heads.presence.bias, 9.0)  # so that it sees all cubes
    return TokenWorldModel(plain.tokenizer, text, model, WORLD)


def proposer(**how) -> TokenSubgoals:
    frames = DecodingConfig(**{"passes": 2, **how.pop("frames", {})})
    caption = DecodingConfig("autoregressive", temperature=how.pop("caption_temperature", 0.0))
    return TokenSubgoals(world_model(), (), SubgoalDecoding(frames, caption, **how))
