"""Protocol A: what is drawn, what succeeds, who plays; journals, and the tiny model end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_world_model

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.policies.planners.cem import CEMConfig
from emu_embodied.protocols import WorldModel
from emu_embodied.rollouts.evaluation import goal_reaching
from emu_embodied.rollouts.evaluation.goal_reaching import (
    ProtocolSettings,
    Stage,
    budget_planner,
    play_protocol,
    summarise,
)
from emu_embodied.rollouts.evaluation.harness import ratio
from emu_embodied.rollouts.evaluation.scene_success import RULES
from emu_embodied.rollouts.goals.task_costs import SceneGoal, scene_cost
from emu_embodied.rollouts.simulator_model import OracleWorldModel
from emu_embodied.types import PIXELS, Observation

SMALL = CEMConfig(horizon=5, execute=5, candidates=6, iterations=1, elites=2)
WORLDS = pytest.mark.parametrize("env", ["tabletop", "pusht"])


def settings(env: str = "tabletop", agent: str = "random", **changes) -> ProtocolSettings:
    return ProtocolSettings(env, agent, **{"planner": SMALL} | changes)


# What is drawn


@WORLDS
def test_rows_follow_from_the_seed_and_more_of_them_begin_with_fewer(env: str):
    stage = Stage(settings(env))
    rows = stage.draw(3)
    assert rows == Stage(settings(env)).draw(4)[:3] and len({row.seed for row in rows}) == 3
    assert rows != Stage(settings(env, seed=43)).draw(3)


def test_a_shifted_background_has_the_rows_and_physics_of_the_expert_and_other_pixels():
    plain, shifted = Stage(settings()), Stage(settings(goals="background"))
    (row,) = plain.draw(1)
    assert shifted.draw(1) == [row]
    one, other = plain.set(row), shifted.set(row)
    assert np.array_equal(one.wanted, other.wanted)
    assert (one.start.pixels != other.start.pixels).mean() > 0.5 and (one.goal.pixels != other.goal.pixels).mean() > 0.5


@WORLDS
def test_a_scene_is_the_recorded_one_and_its_actions_lead_to_the_goal(env: str):
    stage = Stage(settings(env))
    for row in stage.draw(2):
        scene = stage.set(row)
        assert stage.rule.counts(stage.rule.look(stage.world), scene.wanted) and scene.actions.shape == (5, 2)
        for action in scene.actions:
            observation = stage.env.step(action)[0]
        assert stage.rule.miss(stage.rule.look(stage.world), scene.wanted) < 0.8
        assert np.abs(observation[PIXELS].astype(int) - scene.goal.pixels).mean() < 3
        assert np.abs(scene.start.pixels.astype(int) - scene.goal.pixels).mean() > 1


def test_the_table_top_is_put_back_exactly():
    stage = Stage(settings())
    (row,) = stage.draw(1)
    scene = stage.set(row)
    for action in scene.actions:
        stage.world.act(action)
    assert np.array_equal(stage.rule.look(stage.world), scene.wanted)


# Success


def test_the_table_tops_success_is_every_cube_within_two_cm():
    rule = RULES["tabletop"]
    goal = np.zeros((6, 4))
    now = goal.copy()
    now[0] = 9  # the pusher may be anywhere
    now[1, :2], now[2, :2] = (1.2, 1.5), (0.0, -1.99)
    assert rule.miss(now, goal) < 1
    now[2, 1] = -2.0
    assert rule.miss(now, goal) == 1
    now[2, 1], now[3, :2] = 0.0, (4.9, 0)
    assert rule.miss(now, goal) > 1 and not rule.counts(now, goal)
    now[3, 0] = 5.0
    assert rule.counts(now, goal) and rule.moved(now, goal) == 5.0


def test_pushts_success_is_a_joint_distance_and_an_angle():
    rule, goal = RULES["pusht"], np.array([100, 100, 200, 200, np.pi - 0.1])
    assert rule.miss(goal + [12, 0, 0, 15.9, 0], goal) < 1  # 19.92 px
    assert rule.miss(goal + [12, 0, 0, 16.1, 0], goal) > 1
    assert rule.miss(goal + [0, 0, 0, 0, np.pi / 9 - 1e-6], goal) < 1  # over the turn from pi to -pi
    assert rule.miss(goal - [0, 0, 0, 0, np.pi / 9 - 1e-6 + 2 * np.pi], goal) < 1
    assert rule.miss(goal + [0, 0, 0, 0, np.pi / 9 + 1e-6], goal) > 1
    assert rule.counts(goal + [20, 0, 0, 0, 0], goal) and not rule.counts(goal + [19, 0, 0, 0, 0], goal)
    assert rule.moved(goal + [99, 9, 16, 0, 1], goal) == 1.0


# Who plays


def test_the_table_tops_oracle_succeeds_where_chance_fails_and_the_copy_succeeds():
    planner = CEMConfig(horizon=5, execute=5, candidates=50, iterations=3, elites=6)
    oracle = play_protocol(settings(agent="oracle", planner=planner), 3)
    assert [row["success"] for row in oracle] == [True] * 3
    assert all(row["predicted_frames"] == 750 * len(row["plan_seconds"]) > 0 for row in oracle)
    assert not any(row["success"] or row["steps"] < 10 for row in play_protocol(settings(agent="random"), 3))
    assert all(row["closest"] == 0 or row["success"] for row in play_protocol(settings(agent="expert"), 3))
    assert ratio(oracle, oracle)["value"] == 1.0


def test_pushts_oracle_comes_nearer_than_chance_and_the_copy_succeeds():
    planner = CEMConfig(horizon=5, execute=5, candidates=40, iterations=3, elites=6)
    near = [row["closest"] for row in play_protocol(settings("pusht", "oracle", planner=planner), 2)]
    chance = [row["closest"] for row in play_protocol(settings("pusht"), 2)]
    assert max(near) < min(chance) and min(near) < 1.5
    assert all(row["success"] for row in play_protocol(settings("pusht", "expert"), 2))


def test_the_oracle_foretells_pusht_to_the_bit_from_a_state_that_was_set():
    stage = Stage(settings("pusht"))
    scene = stage.set(stage.draw(1)[0])
    model = OracleWorldModel(stage.env)
    assert isinstance(model, WorldModel) and model.objects == ("pusher", "T", "tip")
    rollout = model.rollout(model.encode([scene.start]), scene.actions[None, None])
    for t, action in enumerate(scene.actions):
        _, reward, _, _, info = stage.env.step(action)
        assert reward == pytest.approx(float(rollout.rewards_BST[0, 0, t]), abs=1e-5)
        assert np.array_equal(rollout.positions_BSTOD[0, 0, t], info["environment_state"].reshape(3, 4)[:, :2])
    assert model.encode([scene.start]).codes_BCN[0, -1].equal(rollout.codes_BSTN[0, 0, -1])


@pytest.mark.parametrize("cost", goal_reaching.COSTS)
def test_a_model_of_tokens_plays_twice_five_steps(cost: str):
    asked = settings(agent="model", cost=cost)
    (row,) = play_protocol(asked, 1, lambda: sighted(tiny_world_model()))
    assert row["success"] or (row["steps"] == 10 and len(row["plan_seconds"]) == 2 and row["predicted_frames"] == 60)
    (again,) = play_protocol(asked, 1, lambda: sighted(tiny_world_model()))
    assert row["closest"] == again["closest"]


def test_a_model_that_sees_nothing_in_the_goal_stays_where_it_is():
    (row,) = play_protocol(settings(agent="model"), 1, lambda: sighted(tiny_world_model(), 0.0))
    assert not row["success"] and row["steps"] == 10 and row["plan_seconds"] == []


def sighted(model, presence: float = 1.0):
    """A model that thinks that everything is there, whatever its random weights see."""
    real = model.step

    def step(history, actions):
        grown, rollout = real(history, actions)
        return grown, replace(rollout, presence_BSTO=torch.full_like(rollout.presence_BSTO, presence))

    model.step = step
    return model


def test_a_goal_without_things_is_no_goal():
    with pytest.raises(InputError, match="a scene without a thing"):
        SceneGoal(np.zeros((3, 3)), range(3))
    seen = Observation(np.zeros((64, 64, 3), np.uint8), np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="goal: reward"):
        scene_cost("reward", tiny_world_model(), seen, np.ones((6, 3)))


def test_a_scenes_distance_counts_what_is_there_as_one_vector():
    places = np.array([[0, 0, 1], [3, 0, 1], [9, 9, 0]])
    goal = SceneGoal(places, [0, 1, 2])
    assert goal.rows == [0, 1]
    positions = torch.tensor([[[0.0, 3.0], [7.0, 0.0], [50.0, 50.0]]])
    assert goal.distance(positions).tolist() == [5.0]


# Journals and figures


def test_a_run_goes_on_where_it_stopped_and_grows(tmp_path: Path):
    journal, played = tmp_path / "a.jsonl", []
    first = play_protocol(settings(), 1, journal=journal, on_episode=played.append)
    both = play_protocol(settings(), 2, journal=journal, on_episode=played.append)
    assert both[:1] == first and played == both and both == play_protocol(settings(), 2)
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 3
    with pytest.raises(ConfigError, match="seed: 43"):
        play_protocol(settings(seed=43), 2, journal=journal)


def test_figures_are_of_pairs():
    def rows(successes):
        plans = {"plan_seconds": [2.0], "predicted_frames": 10}
        return [{"seed": i, "success": ok, "closest": 1.5 - ok, **plans} for i, ok in enumerate(successes)]

    mine, theirs = rows([True, False, True, False]), rows([True, True, True, False])
    assert summarise(mine)["rate"] == 0.5 and summarise(mine, 2.0)["rate"] == 1.0
    assert summarise(mine)["frames_per_plan"] == 10 and summarise(mine)["seconds_per_plan_median"] == 2.0
    found = ratio(mine, theirs)
    assert found["value"] == pytest.approx(2 / 3) and found["bootstrap_95"][0] <= 2 / 3 <= found["bootstrap_95"][1]
    assert ratio(mine, rows([False] * 4))["value"] is None


# Bad input


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "predictive", "categorical"])
def test_a_budget_is_filled_and_never_exceeded(name: str):
    for frames in (85, 200, 1024, 2048, 4096, 8192):
        planner = budget_planner(name, frames)
        assert frames / 2 < planner.predicted_frames <= frames and planner.horizon == planner.execute == 5


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="budget: 79; one round takes 80"):
        budget_planner("cem", 79)
    with pytest.raises(ConfigError, match="planner: gradient"):
        budget_planner("gradient", 4096)
    for field in ("env", "agent", "goals", "cost"):
        with pytest.raises(ConfigError, match=f"{field}: fame; choose"):
            settings(**{field: "fame"})
    with pytest.raises(ConfigError, match="goals: background"):
        settings("pusht", goals="background")
    with pytest.raises(ConfigError, match="cost: tokens"):
        settings(agent="oracle", cost="tokens")
    with pytest.raises(ConfigError, match="agent: model; give make_model"):
        play_protocol(settings(agent="model"), 1)
    with pytest.raises(ConfigError, match="episodes: 0"):
        play_protocol(settings(), 0)
