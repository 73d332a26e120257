"""Parts of a configuration become the dataclasses that they are written for, or are refused by the name of their key."""

import pytest
from omegaconf import OmegaConf

from emu_embodied.commands._config import compose_config, typed
from emu_embodied.data.quality import QualityConfig
from emu_embodied.emu35.lora import LoRAConfig
from emu_embodied.errors import ConfigError
from emu_embodied.policies.planners.registry import CONFIGS
from emu_embodied.training.key_frame_batches import LanguageConfig
from emu_embodied.training.pipeline import Recipe
from emu_embodied.training.stages.emu35 import FineTuning


@pytest.mark.parametrize("preset", ["tiny", "nano", "nano-pusht", "base"])
def test_every_preset_is_a_recipe(preset):
    recipe = typed(Recipe, compose_config("train", [f"preset={preset}"]).recipe, "recipe", apart=("collect",))
    assert recipe.tokenizer.levels == tuple(recipe.tokenizer.levels) and hash(recipe.tokenizer)
    assert recipe.trajectory_loop.optimiser == "muon" and recipe.transformer_config(7).vocab_size == 7


def test_other_parts_are_what_their_defaults_say():
    config = compose_config("train", ["preset=emu3.5", "from=x"])
    assert typed(FineTuning, config.recipe, "recipe", apart=("collect",)).lora == LoRAConfig()
    assert typed(QualityConfig, config.quality, "quality") == QualityConfig()
    language = typed(LanguageConfig, config.language, "language", apart=("loop",))
    assert language.groups is not None and language.groups["push"] == 0.4
    for name, kind in CONFIGS.items():  # a planner's keys stand among the verb's own
        assert typed(kind, compose_config("plan", [f"planner={name}"])).name == name


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tokenizer": {"depth": 3}}, "recipe.tokenizer.depth"),
        ({"trajectory": {"batch": "many"}}, "recipe.trajectory.batch"),
        ({"trajectory": {"batch": 0}}, "recipe.trajectory.batch"),
        ({"tokenizer": {"levels": [8, "x"]}}, "recipe.tokenizer.levels"),
        ({"transformer": {"num_hidden_layers": None}}, "recipe.transformer.num_hidden_layers"),
        ({"trajectory_loop": {"optimiser": "sgd"}}, "recipe.trajectory_loop.optimiser"),
        ({"surprise": 1}, "recipe.surprise"),
    ],
)
def test_what_a_class_does_not_take_is_refused_by_its_key(change, field):
    recipe = OmegaConf.merge(OmegaConf.to_container(compose_config("train", ["preset=tiny"]).recipe), change)
    with pytest.raises(ConfigError) as caught:
        typed(Recipe, recipe, "recipe", apart=("collect",))
    assert caught.value.field.startswith(field) and "\n" not in str(caught.value)


def test_a_key_that_a_class_needs_is_named():
    recipe = compose_config("train", ["preset=tiny"]).recipe
    part = OmegaConf.masked_copy(recipe, [name for name in recipe if name not in ("collect", "noise")])
    with pytest.raises(ConfigError, match=r"^recipe\.noise: "):
        typed(Recipe, part, "recipe")
