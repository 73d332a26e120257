"""Subgoals followed on the real table-top: the truth, controls, who follows them, the filter, the figures, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import emu_embodied.envs  # noqa: F401
from emu_embodied.commands import main
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.envs.tabletop.env import STATE_NAMES
from emu_embodied.envs.tabletop.tasks import OBJECTS, parse_task
from emu_embodied.errors import ConfigError, DatasetError, InputError
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.policies.subgoal_manager import PlacesGoal, SubgoalConfig, SubgoalManager
from emu_embodied.rollouts.agents.mpc import run_episode
from emu_embodied.rollouts.evaluation import subgoals as evaluation
from emu_embodied.rollouts.evaluation.harness import difference, rate
from emu_embodied.rollouts.goals.subgoal_filter import (
    FilteredProposer,
    ScriptedSubgoals,
    Sight,
    carry_out,
    closest,
    faults,
    named_things,
)
from emu_embodied.rollouts.goals.subgoal_proposers import (
    CopyCurrent,
    Reinstructed,
    Retrieved,
    TrueSubgoals,
    another_instruction,
    key_steps,
    places_of,
    scene_distance,
)
from emu_embodied.rollouts.goals.subgoal_setup import Follower, Following
from emu_embodied.rollouts.simulator_model import OracleWorldModel
from emu_embodied.rollouts.viewer.episode_record import load_record, save_record
from emu_embodied.types import AGENT_POS, PIXELS, Observation, Subgoal

ENV = "emu_embodied/TabletopPush-v0"
SMALL = CEMConfig(candidates=32, iterations=2, elites=6, horizon=8, execute=2)
NAMES = ("pusher", "red", "green")
EASY = 2  # the seed of an episode that takes few steps


def table(seed: int = 2, **options):
    env = gymnasium.make(ENV, max_episode_steps=40)
    seen, info = env.reset(seed=seed, options=options or None)
    return env, Observation(seen[PIXELS], seen[AGENT_POS], info["task"])


def scene(**places) -> np.ndarray:
    """Places (O, 3) of `NAMES`; who is not named is absent."""
    return np.array([(*places[name], 1) if name in places else (0, 0, 0) for name in NAMES], np.float32)


def subgoal(last: bool = False, caption: str = "", log_prob: float = 0.0, **places) -> Subgoal:
    return Subgoal(caption, np.zeros((64, 64, 3), np.uint8), scene(**places), log_prob, last)


class Listed:
    """A proposer of prepared chains, one a call; it keeps the seeds it was asked with."""

    objects = NAMES

    def __init__(self, *chains):
        self.chains, self.seeds = list(chains), []

    def propose(self, observation, count=4, seed=0):
        self.seeds.append(seed)
        return self.chains.pop(0) if self.chains else []


SEEN = Observation(np.zeros((64, 64, 3), np.uint8), np.zeros(2, np.float32), "push the red cube to the left")
START = scene(pusher=(8, 0), red=(0, 0))
BEHIND = subgoal(pusher=(4, 0), red=(0, 0))
ON = subgoal(pusher=(0, 0), red=(-4, 0))
HOME = subgoal(last=True, pusher=(-4, 0), red=(-8, 0))


# Who follows


def test_subgoals_are_pursued_in_turn_and_then_asked_for_again_until_none_comes():
    proposer = Listed([BEHIND, ON, HOME], [])
    manager = SubgoalManager(proposer, NAMES, seed=3)
    assert manager.look(SEEN, START, 0) is not None and manager.subgoal is BEHIND
    assert manager.look(SEEN, START, 2) is not None and manager.subgoal is BEHIND
    manager.look(SEEN, scene(pusher=(5, 1), red=(0, 0)), 4)  # the pusher's tolerance is looser
    assert manager.subgoal is ON
    manager.look(SEEN, scene(pusher=(1, 0), red=(-3, 0)), 6)
    assert manager.subgoal is HOME
    manager.look(SEEN, scene(pusher=(-2, 0), red=(-6.5, 0)), 8)  # near is not home
    assert manager.subgoal is HOME and manager.stopped_at is None
    assert manager.look(SEEN, scene(pusher=(-4, 0), red=(-7.8, 0)), 10) is None
    assert manager.stopped_at == 10 and manager.look(SEEN, START, 12) is None
    assert [at for _, at in manager.pursued] == [0, 4, 6] and proposer.seeds == [3000, 3001]


def test_a_later_subgoal_that_is_reached_already_counts():
    manager = SubgoalManager(Listed([BEHIND, ON, HOME]), NAMES)
    manager.look(SEEN, START, 0)
    manager.look(SEEN, scene(pusher=(9, 9), red=(-4, 0)), 2)
    assert manager.subgoal is HOME
    ahead = SubgoalManager(Listed([BEHIND, ON, HOME]), NAMES)
    ahead.look(SEEN, scene(pusher=(4, 0), red=(0, 0)), 0)
    assert ahead.subgoal is ON


def test_patience_ends_and_a_cube_that_was_bumped_into_ends_a_walk():
    manager = SubgoalManager(Listed([BEHIND, HOME], [ON, HOME], [HOME]), NAMES, SubgoalConfig(patience=4))
    for step in (0, 2):
        manager.look(SEEN, START, step)
    assert manager.subgoal is BEHIND
    manager.look(SEEN, START, 4)
    assert manager.subgoal is ON
    bumped = SubgoalManager(Listed([BEHIND, HOME], [ON, HOME]), NAMES)
    bumped.look(SEEN, START, 0)
    bumped.look(SEEN, scene(pusher=(8, 0), red=(0, 2.5)), 2)
    assert bumped.subgoal is ON


def test_the_last_subgoal_is_kept_to_where_the_proposer_sees_no_better():
    manager = SubgoalManager(Listed([HOME], [HOME]), NAMES)
    for step in (0, 2):
        assert manager.look(SEEN, scene(pusher=(-4, 0), red=(-8, 0)), step) is not None
        assert manager.subgoal is HOME


def test_objects_are_matched_by_name():
    order = ("green", "tip", "red", "pusher")
    manager = SubgoalManager(Listed([BEHIND, ON]), order)
    now = np.array([(0, 0, 0), (0, 0, 0), (0, 0, 1), (8, 0, 1)], np.float32)
    manager.look(SEEN, now, 0)
    now[3, :2] = 4, 0
    manager.look(SEEN, now, 2)
    assert manager.subgoal is ON
    with pytest.raises(InputError, match="the proposer's objects"):
        SubgoalManager(Listed(), ("pusher", "T"))
    with pytest.raises(InputError, match="patience: 0"):
        SubgoalConfig(patience=0)
    with pytest.raises(InputError, match="near: -1"):
        SubgoalConfig(near=-1)


@hypothesis_settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_a_places_goal_is_least_where_things_are_wanted(seed: int):
    rng = np.random.default_rng(seed)
    wanted, weights = rng.uniform(-9, 9, (4, 2)), rng.uniform(0.1, 2, 4) * np.array([1, 0, 1, 1])
    goal = PlacesGoal(wanted, weights)
    there, off = torch.from_numpy(wanted).float(), torch.from_numpy(wanted + rng.normal(0, 1, (4, 2))).float()
    assert goal.distance(there).item() < 1e-5 < goal.distance(off).item()
    there[1] += 5  # what does not count
    assert goal.distance(there).item() < 1e-5


# The truth and the controls


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_truth_puts_the_simulator_back_and_ends_where_the_predicate_holds(stochastic: bool):
    futures = []
    for look in (False, True):
        env = gymnasium.make(ENV, stochastic=stochastic)
        seen, info = env.reset(seed=2)
        if look:
            told = Observation(seen[PIXELS], seen[AGENT_POS], info["task"])
            chain = TrueSubgoals(env).propose(told)
            assert env.unwrapped.task == info["task"]
        futures.append([env.step(np.full(2, 0.4, np.float32))[0][PIXELS] for _ in range(5)])
    assert np.array_equal(*futures)
    if stochastic:
        return
    assert len(chain) >= 2 and [s.last for s in chain] == [False] * (len(chain) - 1) + [True]
    assert parse_task(told.instruction).distance(chain[-1].places[:, :2].astype(float)) <= 0
    cube = OBJECTS.index(parse_task(told.instruction).cube)
    assert chain[0].caption == f"move behind the {OBJECTS[cube]} cube"
    start = info["environment_state"].reshape(-1, 4)[cube, :2]
    assert np.linalg.norm(chain[0].places[cube, :2] - start) < 0.5  # nothing was pushed yet


def test_nothing_is_proposed_where_all_is_done_and_instructions_are_checked():
    env, seen = table(instruction="push the red cube to the left", cubes={"red": (-8, 0, 0)})
    assert TrueSubgoals(env).propose(seen) == []
    with pytest.raises(InputError, match="there is no blue cube"):
        TrueSubgoals(env).propose(replace(seen, instruction="push the blue cube to the left"))
    with pytest.raises(InputError, match="instruction: dance"):
        TrueSubgoals(env).propose(replace(seen, instruction="dance"))
    with pytest.raises(InputError, match="env: "):
        TrueSubgoals(gymnasium.make("CartPole-v1"))


def test_key_frames_are_where_pushing_starts_then_every_five_steps_then_the_end():
    path = np.zeros((20, 2))
    path[7:, 0] = np.arange(13)
    assert key_steps(path) == ([7], [7, 12, 17, 19])
    assert key_steps(path[7:]) == ([], [5, 10, 12])  # it moves from the start on
    assert key_steps(np.zeros((3, 2))) == ([], [2])
    twice = np.concatenate([path, path[-1] + np.zeros((4, 2)), path[-1] + path[8:12, ::-1]])
    assert key_steps(twice) == ([7, 23], [7, 12, 17, 19, 23, 27])  # two pushes, a walk in between


def test_pusht_has_a_truth_too_whose_loop_knows_no_cubes():
    pytest.importorskip("gym_pusht")
    env = gymnasium.make("emu_embodied/PushT-v0")
    seen, info = env.reset(seed=2)
    proposer = TrueSubgoals(env)
    chain = proposer.propose(Observation(seen[PIXELS], seen[AGENT_POS], info["task"]), count=3)
    assert proposer.objects == ("pusher", "T", "tip") and 1 <= len(chain) <= 3
    manager = Follower(Following("true"), env).begin(env, OracleWorldModel(env), 0)
    assert manager.config.radius is None
    assert manager.look(Observation(seen[PIXELS], seen[AGENT_POS], info["task"]), places_of(env.unwrapped), 0)


def test_another_instruction_means_something_else_about_what_is_there():
    texts = set()
    for seed in range(12):
        env, seen = table(seed)
        other = another_instruction(env, seed)
        task, own = parse_task(other), env.unwrapped.task_spec
        env.reset(seed=seed, options={"instruction": other})  # its cubes are there
        assert (task.kind, task.cube, task.where, {task.cube, task.other}) != (
            own.kind,
            own.cube,
            own.where,
            {own.cube, own.other},
        )
        texts.add(other)
    assert len(texts) > 5
    env, seen = table(3)
    other = another_instruction(env, 3)
    told = Reinstructed(TrueSubgoals(env), other).propose(seen)
    assert told[-1].caption == other and env.unwrapped.task == seen.instruction


def recordings(env, seeds, size: int = 64) -> FrameCache:
    """Two frames of each seed: its start, and the truth's end."""
    frames, states, texts = [], [], []
    for seed in seeds:
        seen, info = env.reset(seed=seed)
        frames += [seen[PIXELS], seen[PIXELS] // 2]
        states += [info["environment_state"]] * 2
        texts.append(info["task"])
    count = len(frames)
    flat = [np.zeros((count, 2), np.float32)] * 2 + [np.zeros(count, np.float32), np.zeros(count, bool)]
    starts = np.arange(0, count + 1, 2)
    names = {"state": list(STATE_NAMES)}
    return FrameCache(
        np.stack(frames)[:, :size],
        flat[0],
        np.stack(states),
        flat[1],
        flat[2],
        flat[3],
        starts,
        tuple(texts),
        names,
        4.0,
    )


def test_what_is_retrieved_is_the_end_of_the_most_similar_start():
    env = gymnasium.make(ENV)
    cache = recordings(env, range(20, 28))
    seen, info = env.reset(seed=23)
    told = Observation(seen[PIXELS], seen[AGENT_POS], info["task"])
    (found,) = Retrieved(env, cache).propose(told)
    assert np.array_equal(found.frame, cache.pixels[2 * 3 + 1]) and found.last
    np.testing.assert_allclose(found.places, places_of(env.unwrapped))
    draws = {Retrieved(env, cache, nearest=False).propose(told, seed=s)[0].frame.tobytes() for s in range(9)}
    assert len(draws) > 2
    with pytest.raises(DatasetError, match="recordings: "):
        Retrieved(env, replace(cache, names={"state": ["x"]}))


def test_scenes_are_near_where_the_same_things_are_in_the_same_places():
    one = scene(pusher=(0, 0), red=(3, 0))
    others = np.stack([one, scene(pusher=(0, 2), red=(3, 0)), scene(pusher=(0, 0), green=(3, 0))])
    assert scene_distance(others, one).tolist() == pytest.approx([0, 1, 32 / 3])


# In closed loop, in true dynamics


def follow(env, proposer, seed: int, steps: int = 40):
    def guide(env, model):
        return SubgoalManager(proposer, model.objects, seed=seed)

    return run_episode(env, OracleWorldModel(env), CEM(SMALL, seed), None, seed, 2, steps, guide)


def test_who_follows_the_truth_succeeds_and_who_copies_does_not(tmp_path: Path):
    env, _ = table()
    for seed in (EASY, 9):
        run = follow(env, TrueSubgoals(env), seed)
        assert run.success and len(run.subgoals) >= 2 and run.subgoals[0].at == 0 and run.stopped_at is None
    copied = follow(env, CopyCurrent(env), EASY, steps=4)
    assert not copied.success and len(copied.actions) == 4
    save_record(tmp_path / "record", run)
    record = load_record(tmp_path / "record")
    assert np.array_equal(record.subgoals[-1], run.subgoals[-1].subgoal.frame)
    assert [told["at"] for told in record.facts["subgoals"]] == [pursued.at for pursued in run.subgoals]


def test_a_robot_that_believes_it_is_done_stays_where_it_is():
    env, _ = table()
    run = follow(env, Listed(), EASY, steps=4)
    assert run.stopped_at == 0 and not run.actions.any() and not run.success and len(run.imagined) == 5
    assert run.row()["stopped_at"] == 0 and run.plan_seconds == ()


# The filter


def test_names_are_words_and_landmarks_come_along():
    assert named_things("bring the blue block to the green one", OBJECTS) == ["blue", "green"]
    assert named_things("Push the T-shaped block.", ("pusher", "T", "tip"), {"tip": "T"}) == ["T", "tip"]
    assert named_things("predict", ("red",)) == []


def drawn(**cubes):
    """What is seen of a scene set by hand, and its true places."""
    env, seen = table(0, instruction="push the red cube to the left", pusher=(10, 10), cubes=cubes)
    return seen, places_of(env.unwrapped), TrueSubgoals(env).objects


def test_subgoals_that_lose_invent_recolour_or_stray_are_rejected():
    sight = Sight.of_tabletop()
    seen, places, names = drawn(red=(5, 0, 0), green=(-5, 5, 0))
    assert np.abs(sight.see(seen.pixels)[:3, :2] - places[:3, :2]).max() < 0.5

    def wrong(**cubes):
        other, there, _ = drawn(**cubes)
        return faults(seen, Subgoal("", other.pixels, there, 0.0, True), names, sight)

    assert wrong(red=(-7, 0, 0), green=(-5, 5, 0)) == []
    assert wrong(red=(-7, 0, 0)) == ["green lost by its places", "green lost by eye"]
    assert "blue invented by eye" in wrong(red=(-7, 0, 0), green=(-5, 5, 0), blue=(5, -5, 0))
    assert {"green lost by eye", "yellow invented by eye"} <= set(wrong(red=(-7, 0, 0), yellow=(-5, 5, 0)))
    assert wrong(red=(-7, 0, 0), green=(-2, 5, 0)) == ["green moved by its places", "green moved by eye"]
    lying = Subgoal("", drawn(red=(-7, 0, 0))[0].pixels, places, 0.0, True)  # right places, wrong pixels
    assert faults(seen, lying, names, sight) == ["green lost by eye"]


def test_the_filter_draws_again_and_takes_what_nothing_speaks_against():
    sight = Sight.of_tabletop()
    seen, places, names = drawn(red=(5, 0, 0), green=(-5, 5, 0))
    good_seen, good_places, _ = drawn(red=(-7, 0, 0), green=(-5, 5, 0))
    bad_seen, bad_places, _ = drawn(red=(-7, 0, 0))
    good = [Subgoal("", good_seen.pixels, good_places, -2.0, True)]
    bad, likelier = ([Subgoal("", bad_seen.pixels, bad_places, p, True)] for p in (-3.0, -1.0))

    def proposer(*chains):
        listed = Listed(*chains)
        listed.objects = names
        return listed

    asked = proposer(bad, good, bad)
    assert FilteredProposer(asked, sight, 3).propose(seen, seed=5) is good and len(set(asked.seeds)) == 2
    filtered = FilteredProposer(proposer(bad, likelier), sight, 2)
    assert filtered.propose(seen) is likelier and (filtered.drawn, filtered.rejected) == (2, 2)
    first = proposer(bad)
    first.again = proposer(good)
    assert FilteredProposer(first, sight, 3).propose(seen) is good and len(first.seeds) == len(first.again.seeds) == 1
    assert FilteredProposer(proposer([], good), sight, 2).propose(seen) == []
    with pytest.raises(ConfigError, match="tries: 0"):
        FilteredProposer(asked, sight, 0)
    with pytest.raises(ConfigError, match="planner"):
        FilteredProposer(asked, sight, 2, model=object())


def test_imagination_tells_what_can_be_reached():
    env, seen = table(EASY)
    proposer, model, state = TrueSubgoals(env), OracleWorldModel(env), env.unwrapped.get_state()
    chain, cube = proposer.propose(seen), env.unwrapped.task_spec.cube
    wanted = {cube: chain[-1].places[proposer.objects.index(cube)]}
    path = carry_out(model, model.encode([seen]), chain, proposer.objects, CEM(SMALL))
    assert closest(path, model.objects, wanted) < 2 < np.linalg.norm(path[0] - path[-1])
    assert np.array_equal(env.unwrapped.get_state(), state)
    far = np.array(chain[-1].places)
    far[proposer.objects.index(cube), :2] = 15.5, 15.5  # beyond the pusher's reach
    proposal = [replace(chain[-1], places=far)]
    quick = CEM(replace(SMALL, candidates=8, iterations=1, execute=8))
    filtered = FilteredProposer(ScriptedSubgoals(proposal, proposer.objects), Sight.of_tabletop(), 1, model, quick)
    assert filtered.propose(seen) is not None and filtered.rejected == 1


# Figures


def test_evaluations_go_on_where_they_stopped_and_are_of_pairs(tmp_path: Path):
    bench = evaluation.Bench(lambda: OracleWorldModel(bench.env))
    true = evaluation.LoopSettings(following=Following("true"), planner=SMALL)
    chance, journal = evaluation.LoopSettings("random", planner=SMALL, max_steps=5), tmp_path / "a.jsonl"
    rows = evaluation.play_loop(bench, true, [EASY], journal=journal)
    again = evaluation.play_loop(bench, true, [EASY], journal=journal)
    others = evaluation.play_loop(bench, chance, [EASY])
    assert rows == again and rows[0]["success"] and not others[0]["success"]
    assert rows[0]["instruction"] == others[0]["instruction"]
    told = evaluation.play_loop(bench, chance, [2], lambda seed: "push the yellow cube to the left")
    assert told[0]["instruction"] == "push the yellow cube to the left"
    with pytest.raises(ConfigError, match="max_steps: 3"):
        evaluation.play_loop(bench, replace(true, max_steps=3), [EASY], journal=journal)
    assert difference(rows, others) == {"value": 1.0, "bootstrap_95": [1.0, 1.0], "n": 1}
    assert rate(row["success"] for row in rows)["rate"] == 1.0
    for settings in ({"agent": "fame"}, {"agent": "follow"}, {"agent": "reward", "following": Following("true")}):
        with pytest.raises(ConfigError):
            evaluation.LoopSettings(**settings)


def test_images_are_judged_by_places_eye_and_reach():
    bench = evaluation.Bench(lambda: None)
    (true,) = evaluation.judge_images(bench, evaluation.ImageSettings(Following("true"), planner=SMALL), [EASY])
    assert all(true[name] for name in evaluation.CRITERIA) and true["miss_cm"] < 2
    (copy,) = evaluation.judge_images(bench, evaluation.ImageSettings(Following("copy"), planner=None), [EASY])
    assert copy["identity_kept"] and not copy["fulfilled_by_places"] and not copy["fulfilled_by_eye"]
    shuffled = evaluation.ImageSettings(Following("shuffled"), planner=None)
    assert not evaluation.judge_images(bench, shuffled, [EASY])[0]["fulfilled"]


# The command

WORDS = ["plan", "goal=language", "candidates=32", "iterations=2", f"seed={EASY}"]


def test_the_command_follows_the_truth_and_shows_it(tmp_path: Path):
    assert main([*WORDS, "subgoals=true", "agent=oracle", "episodes=1", f"out={tmp_path}"]) == 0
    (folder,) = tmp_path.iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["rate"] == 1.0 and result["settings"]["following"]["proposer"] == "true"
    assert result["episodes"][0]["subgoals"][0]["caption"].startswith("move behind")
    assert main(["report", str(folder)]) == 0
    assert "move behind" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["subgoals=true", "agent=random"], "agent: random; it does not plan"),
        (["subgoals=nowhere"], "nowhere"),
        (["goal=positions", "subgoals=true"], "subgoals: True; goal=language follows them"),
        (["subgoals=retrieved"], "recordings: None; subgoals=retrieved"),
        (["subgoals=retrieved", "recordings=nowhere", "agent=oracle"], "nowhere"),
        (["subgoals=true", "tries=0"], "tries: 0; give"),
        (["subgoals=true", "patience=0"], "patience: 0; give"),
        (["subgoals=true", "planner=gradient"], "goal: language; it has no gradient"),
        (["subgoals=true", "env=reacher", "agent=oracle"], "its goals are those of the table-top and of PushT"),
    ],
)
def test_a_wrong_word_is_one_line(words, expected, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([*WORDS, f"out={tmp_path}/runs", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert expected in error and "\n" not in error and not (tmp_path / "runs").exists()
