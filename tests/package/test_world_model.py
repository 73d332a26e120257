"""TokenWorldModel: one interface over tokenizers, steps and decoding; batches, chunks and candidates change nothing."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_world_model

from emu_embodied.envs.registration import LOADING
from emu_embodied.errors import InputError
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.loading import load
from emu_embodied.protocols import WorldModel
from emu_embodied.types import Observation

RNG = np.random.default_rng(0)


def observations(count: int) -> list[Observation]:
    size = tiny_world_model().image_size
    pixels = np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return [Observation(p, np.zeros(2, np.float32), "push the red cube to the left") for p in pixels]


def same(a, b, atol=1e-4):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        torch.testing.assert_close(x, y, atol=atol, rtol=0, msg=lambda m, n=field.name: f"{n}: {m}")


@pytest.mark.parametrize(
    "options", [{}, {"passes": 4}, {"decoding": "autoregressive"}, {"decoding": "exact"}, {"context": 0}]
)
def test_a_rollout_is_the_same_alone_in_a_batch_and_in_chunks(options):
    model = tiny_world_model(**options)
    assert isinstance(model, WorldModel)
    history = model.encode(observations(3))
    actions = RNG.uniform(-1, 1, (3, 5, 4, 2)).astype(np.float32)
    together = model.rollout(history, actions)
    assert together.codes_BSTN.shape == (3, 5, 4, model.tokens_per_frame)
    assert together.positions_BSTOD.shape == (3, 5, 4, len(model.objects), 2)
    assert ((together.success_BST >= 0) & (together.success_BST <= 1)).all()
    model.chunk = 6
    same(model.rollout(history, actions), together)
    alone = model.rollout(history.select([1]), actions[1:2, 3:4])
    assert alone.codes_BSTN[0, 0].equal(together.codes_BSTN[1, 3])


def test_steps_agree_with_a_rollout_while_the_context_is_the_same():
    model = tiny_world_model()
    history = model.encode(observations(2))
    actions = RNG.uniform(-1, 1, (2, 1, 3, 2)).astype(np.float32)
    first, rollout = model.step(history, actions[:, 0, 0])
    assert rollout.codes_BSTN[:, 0, 0].equal(model.rollout(history, actions).codes_BSTN[:, 0, 0])
    assert (
        first.codes_BCN[:, -1].equal(rollout.codes_BSTN[:, 0, 0]) and first.codes_BCN.shape == history.codes_BCN.shape
    )
    assert np.allclose(first.actions_BCA[:, -1].numpy(), actions[:, 0, 0])
    frames = model.decode(rollout.codes_BSTN)
    assert frames.shape == (2, 1, 1, model.image_size, model.image_size, 3) and frames.dtype == np.uint8
    assert model.agent_pos(rollout).shape == (2, 1, 1, 2)


def test_what_really_happened_enters_the_history():
    model, seen = tiny_world_model(), observations(2)
    history = model.observe(model.encode(seen[:1]), np.array([[0.5, -0.5]], np.float32), seen[1:])
    assert history.codes_BCN[0, -1].equal(model.encode(seen[1:]).codes_BCN[0, -1])
    assert history.codes_BCN[0, -2].equal(model.encode(seen[:1]).codes_BCN[0, -1])


def test_noise_is_seeded_and_matters():
    model = tiny_world_model(temperature=1.0, passes=2)
    history, actions = model.encode(observations(1)), np.zeros((1, 3, 2, 2), np.float32)
    model.seed(5)
    first = model.rollout(history, actions).codes_BSTN
    other = model.rollout(history, actions).codes_BSTN
    model.seed(5)
    assert model.rollout(history, actions).codes_BSTN.equal(first) and not other.equal(first)


BAD_ACTIONS = st.one_of(
    st.sampled_from([np.nan, np.inf, -np.inf, 1.5, -2.0, 1e30]).map(lambda x: np.full((1, 2), x, np.float32)),
    st.sampled_from([(1,), (2,), (1, 3), (2, 2), (1, 2, 1), (0, 2)]).map(lambda s: np.zeros(s, np.float32)),
    st.sampled_from(["left", None, [["a", "b"]], [[1j, 0j]], [[True, False]], [[0.0], [0.0, 1.0]]]),
)


@given(BAD_ACTIONS)
@settings(max_examples=60)
def test_bad_actions_are_refused(actions):
    model = tiny_world_model()
    history = model.encode(observations(1))
    with pytest.raises(InputError, match="actions: "):
        model.step(history, actions)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((32, 64, 3), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64), np.uint8),
        np.full((64, 64, 3), np.nan),
        None,
        [[0]],
    ],
)
def test_bad_pixels_are_refused(pixels):
    with pytest.raises(InputError, match="pixels"):
        tiny_world_model().encode([Observation(pixels, np.zeros(2, np.float32), "")])


@pytest.mark.parametrize(
    "options",
    [{"passes": 0}, {"passes": 1000}, {"decoding": "magic"}, {"temperature": -1}, {"temperature": float("nan")}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        tiny_world_model(**options)


def test_gymnasium_knows_the_loaders_options():
    assert set(LOADING) == {"device", "engine", "precision", *(field.name for field in fields(DecodingConfig))}
    with pytest.raises(InputError, match="option: pases"):
        load(pases=2)


def test_no_observations_and_long_instructions_are_refused():
    model = tiny_world_model()
    with pytest.raises(InputError, match="observations"):
        model.encode([])
    with pytest.raises(InputError, match="instruction"):
        model.encode([Observation(observations(1)[0].pixels, np.zeros(2), "word " * 100)])


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_a_future_draws_the_same_however_many_are_imagined_at_once(chunk: int):
    """Neither the worlds beside it nor `chunk`, which decides how its candidates are split, change what is drawn."""
    model, split = (tiny_world_model(temperature=1.0, passes=2) for _ in range(2))
    split.chunk = chunk
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    history = model.encode([Observation(frame, np.zeros(2, np.float32)) for frame in frames])
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 5, 2, 2)).astype(np.float32)
    whole = model.rollout(history, actions, seeds=[4, 5, 6]).codes_BSTN
    assert torch.equal(split.rollout(history, actions, seeds=[4, 5, 6]).codes_BSTN, whole)
    for world in range(3):
        alone = model.rollout(history.select([world]), actions[world : world + 1], seeds=[4 + world]).codes_BSTN
        assert torch.equal(alone[0], whole[world])
    same = model.rollout(history.select([0]), np.repeat(actions[:1, :1], 5, 1), seeds=[4]).codes_BSTN[0]
    assert len({str(future.tolist()) for future in same}) == 5, "futures of the same actions are not the same"
