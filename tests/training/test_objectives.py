"""What the trajectory model's loss counts, against a definition written out slot by slot."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_training import WORLD, frames, tiny_recipe

from emu_embodied.errors import ConfigError
from emu_embodied.model.token_model import TokenModel
from emu_embodied.tokenizers.frames import FrameTokenizer
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.objectives import TrajectoryConfig, TrajectoryObjective, _own_rollout, real_frames
from emu_embodied.training.pipeline import model_config
from emu_embodied.training.stages.trajectory import trajectory_objective


def objective_of(context: int, **settings) -> tuple[TrajectoryObjective, TokenModel]:
    """A tiny model with random weights, and random codes to learn: what it dreams is never what the data hold."""
    recipe, cache = replace(tiny_recipe(), context_frames=context), frames()
    text, tokenizer = TextTokenizer.train(cache.instructions), FrameTokenizer(recipe.tokenizer)
    config = TrajectoryConfig(batch=3, corruption=0.0, shift_frames=0, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = TokenModel(model_config(recipe, WORLD, text, cache))
        codes = torch.randint(0, recipe.tokenizer.codebook_size, (len(cache), model.config.slots))
    return trajectory_objective(model, tokenizer, text, WORLD, cache, codes, config, 100, 0), model


@pytest.mark.parametrize("window", [2, 3, 4, 5])
@pytest.mark.parametrize("context", [0, 1, 2, 3])
def test_own_rollouts_count_the_next_tokens_of_real_frames_alone(context, window):
    objective, model = objective_of(context, rollout_frames=window)
    _, figures = objective(model, 99)
    batch = objective.sampler.batch(99, 3, window)
    seen = _own_rollout(model, batch, batch.codes_BFN, objective.noise, torch.Generator())
    predicted = model.frame_predictions(model(batch.text_BL, seen, batch.actions_BFA, None, None, None, True).clean_BFTD)
    logits = model.visual_logits(predicted)
    total, weights, counted = 0.0, 0.0, []
    for b in range(3):
        for t in range(1, window):
            true, before = batch.codes_BFN[b, t], batch.codes_BFN[b, t - 1]
            if (seen[b, t] != true).any():  # the model's own frame: what follows its tokens is not known
                continue
            counted.append(t)
            weight = torch.where(true == before, 1.0, objective.config.changed)
            total += (F.cross_entropy(logits[b, t - 1], true, reduction="none") * weight).sum()
            weights += weight.sum()
    assert figures["causal"] == pytest.approx((total / weights).item(), rel=1e-5)
    dreams = max(0, window - 1 - max(1, context))
    assert len(counted) == 3 * (window - 1 - dreams) and window - 1 in counted
    assert sum(real_frames(window, context)) == window - dreams and real_frames(window, context)[-1]


def test_every_frame_of_the_joint_phase_is_real():
    objective, model = objective_of(2, frames=4)
    batch = objective.sampler.batch(50, 3, 4)
    _, figures = objective(model, 50)
    states = model(batch.text_BL, batch.codes_BFN, batch.actions_BFA, None, None, None, True)
    targets = batch.codes_BFN[:, 1:]
    weight = torch.where(targets == batch.codes_BFN[:, :-1], 1.0, objective.config.changed)
    losses = F.cross_entropy(
        model.visual_logits(model.frame_predictions(states.clean_BFTD)).flatten(0, -2), targets.flatten(), reduction="none"
    )
    assert figures["causal"] == pytest.approx(((losses * weight.flatten()).sum() / weight.sum()).item(), rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"rollout_frames": 1}, {"frames": 1}, {"frames": 2.5}, {"batch": 0}, {"joint_until": 1.5}, {"causal_share": -0.1},
     {"corruption": True}, {"changed": -1.0}, {"soften": float("nan")}, {"shift_frames": -1}],
)  # fmt: skip
def test_numbers_of_the_loss_outside_their_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=rf"^{next(iter(wrong))}: "):
        TrajectoryConfig(**wrong)
