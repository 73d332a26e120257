"""Soft futures: their first frame is the one that is drawn, a gradient that is one, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import WORLD, tiny_world_model
from tiny_emu35_lm import write_released
from tiny_emu35_world import ADOPTION

from emu_embodied.emu35.action_adapter import adopt
from emu_embodied.emu35.loading import load as load_released
from emu_embodied.errors import InputError
from emu_embodied.inference.frame_step import soft_step
from emu_embodied.model.token_model import TokenModel
from emu_embodied.types import Observation, Rollout
from emu_embodied.world_model import TokenWorldModel

ESTIMATES = ("rewards_BST", "success_BST", "positions_BSTOD", "presence_BSTO", "entropy_BST")


def start(model, worlds: int = 2):
    pixels = np.random.default_rng(0).integers(0, 256, (worlds, 64, 64, 3), np.uint8)
    history = model.encode([Observation(p, np.zeros(2, np.float32), "push the red cube to the left") for p in pixels])
    torch.manual_seed(0)
    return model.step(history, (torch.rand(worlds, 2) * 2 - 1).numpy())[0]


def some_actions(*shape: int) -> torch.Tensor:
    """In the middle of their bins, of which the tiny model has 8."""
    return torch.randint(8, shape, generator=torch.Generator().manual_seed(1)) / 4 - 0.875


def alike(one: Rollout, other: Rollout) -> None:
    assert one.codes_BSTN.equal(other.codes_BSTN)
    for name in ESTIMATES:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("context", [0, 2])
def test_one_frame_is_the_step_wherever_it_begins(context: int):
    model = tiny_world_model(context=context)
    history, actions = start(model), some_actions(2, 1, 3, 2)
    for t in range(3):
        soft = model.soft_rollout(history, actions[:, :, t : t + 1])
        history, rollout = model.step(history, actions[:, 0, t].numpy())
        alike(soft, rollout)


def test_the_first_frame_is_the_same_soft_or_hard_and_later_ones_are_not():
    model = tiny_world_model(context=0)
    history, actions = start(model), some_actions(2, 2, 3, 2)
    soft, hard = model.soft_rollout(history, actions), model.rollout(history, actions)
    torch.testing.assert_close(soft.positions_BSTOD[:, :, 0], hard.positions_BSTOD[:, :, 0], atol=1e-4, rtol=1e-4)
    assert (soft.positions_BSTOD[:, :, 2] - hard.positions_BSTOD[:, :, 2]).abs().max() > 1e-2


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", ESTIMATES)
def test_the_gradient_is_the_slope(context: int, name: str):
    """Through three frames, by central differences, inside the actions' bins."""
    model = tiny_world_model(context=context)
    history, actions = start(model, 1), some_actions(1, 1, 3, 2).requires_grad_()
    direction = torch.randn(actions.shape, generator=torch.Generator().manual_seed(2))

    def value(a: torch.Tensor) -> torch.Tensor:
        return getattr(model.soft_rollout(history, a), name).double().sum()

    (gradient,) = torch.autograd.grad(value(actions), actions)
    step = 2e-3 * direction
    slope = float((value(actions.detach() + step) - value(actions.detach() - step)).detach()) / (2 * 2e-3)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=0.05, abs=1e-3) and abs(slope) > 1e-3


def test_the_gradient_survives_an_inference_mode_around_it():
    model = tiny_world_model()
    with torch.inference_mode():
        history = start(model)
        model.rollout(history, some_actions(2, 2, 2, 2))
    actions = some_actions(2, 2, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(model.soft_rollout(history, actions).rewards_BST.sum(), actions)
    assert gradient.abs().min() > 0 and all(p.grad is None for p in model.model.parameters())


def test_frames_with_structure_between_their_tokens_are_embedded_softly_too(tmp_path):
    _, _, model = adopt(load_released(write_released(tmp_path), dtype=torch.float32), WORLD, 2, ADOPTION)
    size = model.config.vocabulary.codebook_size
    codes = torch.randint(size, (3, model.config.slots), generator=torch.Generator().manual_seed(0))
    one_hot = F.one_hot(codes, size).float()
    torch.testing.assert_close(model.embed_block(one_hot), model.embed_block(codes))
    text = torch.zeros(3, 96, dtype=torch.int64)
    logits, hidden = soft_step(model.eval(), text, one_hot[:, None].repeat(1, 2, 1, 1), torch.zeros(3, 2, 2))
    assert logits.shape == (3, model.config.slots, size) and hidden.shape[:2] == (3, model.config.slots)


def test_a_model_without_hidden_tokens_is_refused():
    tiny = tiny_world_model()
    model = TokenModel(replace(tiny.model.config, noise="uniform"))
    other = TokenWorldModel(tiny.tokenizer, tiny.text, model, tiny.world)
    with pytest.raises(InputError, match="noise: uniform; soft futures need a model trained with hidden tokens"):
        other.soft_rollout(start(tiny), some_actions(2, 1, 1, 2))


@pytest.mark.parametrize(
    "bad", [torch.full((2, 1, 1, 2), float("nan")), torch.full((2, 1, 1, 2), 2.0), torch.zeros(2, 1, 2)]
)
def test_bad_actions_are_refused(bad):
    model = tiny_world_model()
    with pytest.raises(InputError, match="actions: "):
        model.soft_rollout(start(model), bad)
