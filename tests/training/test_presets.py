"""The presets are what they say: sizes within their bounds, every phase runs."""

import pytest
import torch

from emu_embodied.commands._config import compose_config
from emu_embodied.commands.train import make_recipe
from emu_embodied.errors import ConfigError
from emu_embodied.model.config import TokenModelConfig
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.transformer import TransformerConfig
from emu_embodied.model.vocabulary import Vocabulary
from emu_embodied.tokenizers.frames import FrameTokenizer


@pytest.mark.parametrize(
    ("preset", "most", "context"),
    [("tiny", 0.2e6, 2), ("nano", 3e6, 0), ("nano-long", 3e6, 0), ("nano-pusht", 3e6, 0), ("base", 25e6, 8)],
)
def test_a_preset_is_as_small_as_it_says(preset, most, context):
    recipe = make_recipe(compose_config("train", [f"preset={preset}"]))
    vocabulary = Vocabulary(recipe.text_size, recipe.tokenizer.codebook_size, recipe.action_bins)
    sizes = TransformerConfig(vocabulary.size, **recipe.transformer)
    with torch.device("meta"):
        config = TokenModelConfig(vocabulary, sizes, recipe.tokenizer.grid, 2, objects=tuple("abcde"))
        parts = TokenModel(config), FrameTokenizer(recipe.tokenizer)
    assert sum(p.numel() for part in parts for p in part.parameters()) <= most
    assert recipe.context_frames == context and recipe.tokenizer.codebook_size <= (
        2048 if preset in ("nano-long", "nano-pusht") else 512
    )
    assert recipe.tokenizer.tokens_per_frame == 64
    phases = recipe.trajectory
    assert 0 < phases.autoregressive_until < phases.joint_until < 1 and phases.rollout_frames > phases.frames - 1


@pytest.mark.parametrize("word", ["recipe.tokenizer.image_size=65", "recipe.transformer.num_key_value_heads=3"])
def test_sizes_that_do_not_fit_are_refused(word):
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        make_recipe(compose_config("train", [word]))
