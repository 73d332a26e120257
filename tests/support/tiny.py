"""A tiny real world model with random weights: for tests of what is built on one."""

from __future__ import annotations

import torch

from emu_embodied.checkpoint import World
from emu_embodied.envs.tabletop.tasks import COLOURS, OBJECTS, all_tasks
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.model.config import TokenModelConfig
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.transformer import TransformerConfig
from emu_embodied.model.vocabulary import Vocabulary
from emu_embodied.tokenizers.frames import FrameTokenizer, FrameTokenizerConfig
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.world_model import TokenWorldModel

WORLD = World(
    objects={name: (10 * i, 20 * i, 30 * i) for i, name in enumerate(OBJECTS)},
    position_scale=(16.0, -16.0),
    env_id="emu_embodied/TabletopPush-v0",
    action_names=("right", "up"),
)


def tiny_world_model(seed: int = 0, context: int = 2, world: World = WORLD, **options) -> TokenWorldModel:
    """A world model, by default of the table-top: 64 px frames of 4 x 4 tokens, two narrow layers; same seed, same weights.

    Args:
        seed: of the weights.
        context: frames of context.
        world: what it is of; it has as many actions as names of them.
        options: of `DecodingConfig`.
    """
    frames = FrameTokenizerConfig(image_size=64, patch=16, margin=0, levels=(4, 4), width=16, blocks=1)
    text = TextTokenizer.train(task.text for task in all_tasks(COLOURS))
    vocabulary = Vocabulary(text.size, frames.codebook_size, action_bins=8)
    sizes = TransformerConfig(
        vocabulary.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    config = TokenModelConfig(
        vocabulary,
        sizes,
        frames.grid,
        action_dim=len(world.action_names),
        text_length=16,
        context_frames=context,
        objects=tuple(world.objects),
        position_scale=tuple(world.position_scale),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, model = FrameTokenizer(frames), TokenModel(config)
        for parameter in (*tokenizer.parameters(), *model.parameters()):
            if (
                parameter.ndim > 1
            ):  # large enough that actions and instructions make a difference; norms stay as they are
                torch.nn.init.normal_(parameter, std=0.3)
    return TokenWorldModel(tokenizer, text, model, world, decoding=DecodingConfig(**options))
