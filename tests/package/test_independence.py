"""A dream is its own: neither its neighbours nor who used the model before change it, and no batch is larger than allowed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from tiny import WORLD, tiny_world_model

from emu_embodied.envs.imagined.beliefs import Beliefs
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.envs.imagined.starts import Starts
from emu_embodied.envs.imagined.vector_env import ImaginedVectorEnv
from emu_embodied.errors import InputError
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.model.noise import WorldNoise, make_noise, uniform
from emu_embodied.policies.costs import ActionEffort, RewardHead
from emu_embodied.policies.planners.registry import make_planner, planner_config
from emu_embodied.policies.planners.scoring import score
from emu_embodied.rollouts.collection.imagined import ImagineSettings, dream_episodes
from emu_embodied.rollouts.collection.shards import Shard
from emu_embodied.rollouts.vector_envs import DreamtWorlds
from emu_embodied.types import Observation

PIXELS = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BEGIN = {
    "observation": {"pixels": PIXELS, "agent_pos": np.zeros(2, np.float32)},
    "instruction": "push the red cube to the left",
}
ACTION = np.array([0.5, -0.25], np.float32)
DRAWING = (
    {"passes": 4, "temperature": 0.7},
    {"passes": 3, "order": "random", "remask": True, "temperature": 0.5},
    {"decoding": "exact", "temperature": 1.0},
    {"decoding": "exact", "temperature": 1.0, "redraft": "noisy"},
    {"decoding": "autoregressive", "temperature": 0.7, "top_k": 3},
)


@pytest.fixture(scope="module")
def real():
    env = gymnasium.make(WORLD.env_id)
    yield env
    env.close()


def dreamt(env, count: int | None = None, seed: int = 5, steps: int = 3) -> list[np.ndarray]:
    """Frames of a dream, or of the first of several."""
    env.reset(seed=seed, options=BEGIN)
    action = ACTION if count is None else np.tile(ACTION, (count, 1))
    frames = [env.step(action)[0]["pixels"] for _ in range(steps)]
    return frames if count is None else [frame[0] for frame in frames]


def near(one, other) -> bool:
    """Whether frames are the same, but for what the rendering of a batch rounds otherwise than that of a single frame."""
    return bool((np.abs(np.int16(one) - np.int16(other)) <= 1).all())


@pytest.mark.parametrize("how", DRAWING)
def test_a_dream_is_the_same_alone_and_among_others(how):
    model = tiny_world_model(**how)
    alone = dreamt(ImaginedEnv(model, terminate_on_success=False))
    for count in (1, 2, 20):  # more than are imagined at once
        many = ImaginedVectorEnv(model, count, terminate_on_success=False)
        assert near(dreamt(many, count), alone)
    two = ImaginedVectorEnv(model, 2, terminate_on_success=False)
    assert near(dreamt(two, 2, seed=[5, 77]), alone)
    assert not near(dreamt(ImaginedEnv(model, terminate_on_success=False), seed=6), alone)
    other = ImaginedVectorEnv(model, 3, terminate_on_success=False)
    other.reset(seed=[1, 5, 9], options=BEGIN)
    assert near(other.step(np.tile(ACTION, (3, 1)))[0]["pixels"][1], alone[0])


@pytest.mark.parametrize("noise", ["uniform", "metric"])
def test_other_noises_are_each_worlds_own(noise):
    places, codes = torch.randn(8, 2), torch.zeros(6, 4, dtype=torch.int64)
    process = make_noise(noise, places)
    two = range(2)  # futures of each world
    together, _ = process.blank(codes, torch.ones_like(codes, dtype=torch.bool), WorldNoise([1, 2, 3]).futures(two))
    alone, _ = process.blank(codes[:2], torch.ones(2, 4, dtype=torch.bool), WorldNoise([2]).futures(two))
    assert together[2:4].equal(alone)
    assert process.refine(codes, codes, 1.0, 0.5, WorldNoise([4, 5]).futures(range(3)))[3:].equal(
        process.refine(codes[3:], codes[3:], 1.0, 0.5, WorldNoise([5]).futures(range(3)))
    )


def test_world_noise_is_uniform_and_goes_on():
    noise = WorldNoise([3, 4])
    first, second = (uniform((2, 5000), torch.zeros(1), noise) for _ in range(2))
    assert 0 <= first.min() and first.max() < 1 and abs(float(first.mean()) - 0.5) < 0.02
    assert not first.equal(second) and not first[0].equal(first[1])
    assert uniform((2, 5000), torch.zeros(1), WorldNoise([3, 4])).equal(first)


@pytest.mark.parametrize("how", DRAWING)
def test_beliefs_at_a_reset_are_the_seeds(how, real):
    model = tiny_world_model(**how)
    env = ImaginedEnv(model, observe=["beliefs"])
    first = env.reset(seed=5, options=BEGIN)[0]["beliefs"]
    env.step(ACTION)
    model.seed(99)
    assert np.array_equal(env.reset(seed=5, options=BEGIN)[0]["beliefs"], first)
    many = ImaginedVectorEnv(model, 3, observe=["beliefs"])
    again = many.reset(seed=[4, 5, 8], options=BEGIN)[0]["beliefs"][1]
    np.testing.assert_allclose(again, first, atol=1e-5)
    acted = Beliefs(real, model)
    runs = []
    for _ in range(2):
        rows = [acted.reset(seed=5)[0]["beliefs"], *(acted.step(ACTION)[0]["beliefs"] for _ in range(2))]
        runs.append(rows)
    assert np.array_equal(*runs)


def test_recorded_dreams_do_not_depend_on_the_part_they_are_in(real):
    model = tiny_world_model(temperature=1.0)
    settings, places = ImagineSettings("tiny", "0", 4, steps=3), Starts(model, real)
    together = list(dream_episodes(model, settings, Shard(0, 0, 4), places, None))
    alone = next(iter(dream_episodes(model, settings, Shard(0, 2, 1), places, None)))
    assert near(together[2].pixels, alone.pixels)
    for name in ("states", "actions", "rewards"):
        np.testing.assert_allclose(getattr(together[2], name), getattr(alone, name), atol=1e-4)


def test_a_policys_dreams_do_not_depend_on_their_number():
    model = tiny_world_model(temperature=1.0)
    worlds = DreamtWorlds(model, WORLD.env_id, {})
    both, alone = ([worlds.begin(seeds), worlds.step(np.tile(ACTION, (len(seeds), 1)))] for seeds in ([3, 4], [4]))
    for one, other in zip(both, alone, strict=True):
        assert near(one.pixels[1], other.pixels[0])
        np.testing.assert_allclose(one.states[18][1], other.states[18][0], atol=1e-4)
    worlds.close()


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], [1, -2], [1, "a"], [True, 1]])
def test_seeds_that_do_not_fit_are_refused(seeds):
    model = tiny_world_model(temperature=1.0)
    history = model.encode([Observation(PIXELS, np.zeros(2, np.float32))] * 2)
    with pytest.raises(InputError, match="seed"):
        model.step(history, np.zeros((2, 2), np.float32), seeds=seeds)


# How many at once


def batches(model) -> list[int]:
    """The sizes of all batches that reach the model's engine from now on."""
    seen = []

    def counted(deed, size):
        return lambda *given, **named: (seen.append(size(given)), deed(*given, **named))[1]

    for name in ("denoise", "verify"):
        setattr(model.engine, name, counted(getattr(model.engine, name), lambda given: len(given[1])))
    model.engine.prefill = counted(model.engine.prefill, lambda given: len(given[0]))
    return seen


@pytest.mark.parametrize("worlds, candidates", [(40, 2), (17, 1), (3, 40), (1, 33), (16, 16)])
@pytest.mark.parametrize("decoding", ["dida", "exact"])
def test_chunk_bounds_worlds_times_candidates(worlds, candidates, decoding):
    model = tiny_world_model(decoding=decoding)
    history = model.encode([Observation(PIXELS, np.zeros(2, np.float32))] * worlds)
    actions = np.random.default_rng(0).uniform(-1, 1, (worlds, candidates, 2, 2)).astype(np.float32)
    model.chunk = 10_000
    whole = model.rollout(history, actions)
    model.chunk, seen = 16, batches(model)
    parts = model.rollout(history, actions)
    assert max(seen) <= 16 and whole.codes_BSTN.equal(parts.codes_BSTN)
    torch.testing.assert_close(whole.rewards_BST, parts.rewards_BST, atol=1e-4, rtol=1e-4)


def test_planners_keep_to_the_chunk_pruning_or_not():
    model = tiny_world_model()
    history, seen = model.encode([Observation(PIXELS, np.zeros(2, np.float32))] * 3), batches(model)
    for prune in (False, True):
        config = planner_config("cem", horizon=4, candidates=30, iterations=1, elites=4, prune=prune)
        make_planner(config).plan_batch(model, history, ActionEffort())
    score(model, history.select([0]), [torch.zeros(80, 4, 2)], RewardHead(), 1, True)
    assert max(seen) <= model.chunk == 16


def test_soft_futures_keep_to_the_chunk(monkeypatch):
    model, seen = tiny_world_model(), []
    import emu_embodied.world_model as module

    real = module.soft_step
    monkeypatch.setattr(
        module, "soft_step", lambda net, text, *rest: (seen.append(len(text)), real(net, text, *rest))[1]
    )
    history = model.encode([Observation(PIXELS, np.zeros(2, np.float32))] * 2)
    actions = torch.zeros(2, 12, 2, 2, requires_grad=True)
    model.soft_rollout(history, actions).rewards_BST.sum().backward()
    assert max(seen) <= 16 and bool((actions.grad != 0).any())


def test_what_an_engine_takes_bounds_the_chunk():
    model = tiny_world_model()
    model.engine.largest_batch = 8
    parts = (model.tokenizer, model.text, model.model, model.world)
    assert type(model)(*parts, engine=model.engine).chunk == 8
    guided = type(model)(*parts, engine=model.engine, decoding=DecodingConfig(guidance=2.0))
    assert guided.chunk == 8
