"""Planning in the oracle and in a tiny model, acting in MuJoCo; journals, workers, pictures and the command."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import gymnasium
import imageio
import numpy as np
import pytest
import torch
from tiny import tiny_world_model

import emu_embodied.envs  # noqa: F401
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.commands import main
from emu_embodied.envs.tabletop.tasks import COLOURS, OBJECTS, all_tasks
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.policies.planners.registry import planner_config
from emu_embodied.protocols import WorldModel
from emu_embodied.rollouts.agents import mpc
from emu_embodied.rollouts.agents.episode import run_policy
from emu_embodied.rollouts.evaluation import planning
from emu_embodied.rollouts.figures import strip, video
from emu_embodied.rollouts.goals import task_costs
from emu_embodied.rollouts.simulator_model import OracleWorldModel
from emu_embodied.types import AGENT_POS, PIXELS, Observation

ENV = "emu_embodied/TabletopPush-v0"
SMALL = CEMConfig(horizon=3, candidates=6, iterations=2, elites=2)
KNOWN = ("pusher", *COLOURS)
EASY = 2  # the seed of an episode that takes few steps


def table(seed: int = 0, **options):
    env = gymnasium.make(ENV, **options)
    observation, _ = env.reset(seed=seed)
    return env, Observation(observation[PIXELS], observation[AGENT_POS], env.unwrapped.task)


def settings(**changes) -> planning.PlanningSettings:
    given = {"env_id": ENV, "agent": "expert", "planner": SMALL, "max_steps": 3}
    return planning.PlanningSettings(**given | changes)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """The same scene; a frame shows the bodies as they were one substep of 0.01 s before its state."""
    return np.abs(one.astype(int) - other).mean() < 0.5


# The goal


@pytest.mark.parametrize("objects", [KNOWN, OBJECTS, ("yellow", "pusher", "blue", "green", "red")])
def test_a_goal_measures_as_the_task_does_in_any_order_of_objects(objects):
    rng = np.random.default_rng(0)
    scenes = rng.uniform(-11, 11, (7, len(OBJECTS), 2))
    scenes[0] = 0  # cubes on their goals, and on each other
    seen = torch.from_numpy(scenes[:, [OBJECTS.index(name) for name in objects]])
    for task in all_tasks(COLOURS):
        goal = task_costs.TaskGoal(task, objects, margin=0.5)
        np.testing.assert_allclose(goal.distance(seen), task.distance(scenes))
        targets = np.stack([task.target(scene) for scene in scenes])
        np.testing.assert_allclose(goal.target(seen), targets, atol=1e-6)
        way = np.linalg.norm(targets - scenes[:, OBJECTS.index(task.cube)], axis=-1)
        np.testing.assert_allclose(goal.distance_inside(seen), task.distance(scenes) + 0.5 * way, atol=1e-5)
        assert objects[goal.pusher] == "pusher" and objects[goal.cube] == task.cube


def test_a_cube_that_the_model_does_not_know_is_named():
    env, _ = table(shift="colour")
    env.reset(seed=0, options={"instruction": "push the purple cube to the left", "cubes": {"purple": (0, 0, 0)}})
    with pytest.raises(InputError, match='the model knows no "purple"'):
        task_costs.build_cost("positions", env, tiny_like(KNOWN))
    assert "purple" in OracleWorldModel(env).objects


def tiny_like(objects):
    model = tiny_world_model()
    model.objects = objects
    return model


# The oracle


def test_the_oracle_foretells_what_happens_to_the_bit():
    env, observation = table(seed=4)
    model = OracleWorldModel(env)
    assert isinstance(model, WorldModel) and model.objects == KNOWN
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 2, 4, 2)).astype(np.float32)
    history = model.encode([observation])
    rollout = model.rollout(history, actions)
    assert rollout.codes_BSTN.shape == (1, 2, 4, model.tokens_per_frame)
    imagined = model.decode(rollout.codes_BSTN[0, 1])
    for t in range(4):
        real, reward, _, _, info = env.step(actions[0, 1, t])
        assert alike(imagined[t], real[PIXELS])
        assert reward == pytest.approx(float(rollout.rewards_BST[0, 1, t]), abs=1e-5)
        assert info["is_success"] == bool(rollout.success_BST[0, 1, t])
        assert np.array_equal(rollout.positions_BSTOD[0, 1, t], env.unwrapped.positions()[:5])
        assert np.array_equal(rollout.presence_BSTO[0, 1, t], env.unwrapped.environment_state()[3::4][:5])
        np.testing.assert_allclose(model.agent_pos(rollout)[0, 1, t], real[AGENT_POS], atol=1e-5)
        history = model.observe(history, actions[0, 1, t][None], [observation])
    assert history.codes_BCN[0, -1].equal(rollout.codes_BSTN[0, 1, -1])


def test_the_oracle_dreams_step_by_step_as_in_one_go():
    env, observation = table(seed=4)
    model = OracleWorldModel(env)
    actions = torch.rand(1, 1, 3, 2) * 2 - 1
    history = model.encode([observation])
    at_once = model.rollout(history, actions)
    for t in range(3):
        history, rollout = model.step(history, actions[:, 0, t].numpy())
        assert rollout.codes_BSTN[0, 0, 0].equal(at_once.codes_BSTN[0, 0, t]) and len(history) == 1


def test_imagining_leaves_the_world_and_its_chance_as_they_were():
    futures = []
    for look in (False, True):
        env, observation = table(seed=1, stochastic=True)
        if look:
            model = OracleWorldModel(env, seed=3)
            first = model.rollout(model.encode([observation]), torch.zeros(1, 3, 5, 2))
            task_costs.expert_goal(env)
        frames = [env.step(np.full(2, 0.3, np.float32))[0][PIXELS] for _ in range(6)]
        futures.append((np.stack(frames), env.unwrapped.get_state()))
    assert np.array_equal(futures[0][0], futures[1][0]) and np.array_equal(futures[0][1], futures[1][1])
    assert not first.codes_BSTN[0, 0].equal(first.codes_BSTN[0, 1])  # gusts of its own


def test_the_oracle_knows_one_table_top():
    env, observation = table()
    with pytest.raises(InputError, match="observations: 2 of them"):
        OracleWorldModel(env).encode([observation] * 2)
    with pytest.raises(InputError, match="env: CartPoleEnv"):
        OracleWorldModel(gymnasium.make("CartPole-v1"))


# Episodes


def test_the_planner_does_the_task_in_true_dynamics():
    env, _ = table()
    config = CEMConfig(candidates=24, elites=5, iterations=2)
    cost = functools.partial(task_costs.build_cost, "positions")
    run = mpc.run_episode(env, OracleWorldModel(env), CEM(config), cost, seed=EASY, execute=config.execute)
    assert run.success and run.distances[-1] == 0 and len(run.actions) < 20
    assert run.predicted_frames == config.predicted_frames * len(run.plan_seconds)
    assert run.distances.shape == (len(run.actions) + 1,)
    assert alike(run.frames, run.imagined)  # it imagined what happened


@pytest.mark.parametrize("goal", planning.GOALS)
def test_a_model_of_tokens_plans_for_every_goal(goal: str):
    env, _ = table(seed=2)
    model = tiny_world_model()
    run = mpc.run_episode(
        env, model, CEM(SMALL), functools.partial(task_costs.build_cost, goal), seed=2, execute=2, max_steps=5
    )
    assert len(run.actions) == 5 and len(run.plan_seconds) == 3 and run.predicted_frames == 3 * SMALL.predicted_frames
    assert run.frames.shape == run.imagined.shape == (6, 64, 64, 3) and run.imagined.dtype == np.uint8
    assert run.actions.dtype == np.float32 and run.row()["kind"] in ("edge", "middle", "next_to")


def test_controls_behave_as_named():
    env, _ = table()
    expert = [run_policy(env, "expert", seed) for seed in range(5)]
    chance = [run_policy(env, "random", seed) for seed in range(5)]
    assert all(run.success for run in expert) and not any(run.success for run in chance)
    assert not len(expert[0].imagined) and expert[0].row()["plan_seconds"] == []
    assert np.array_equal(chance[1].actions, run_policy(env, "random", 1).actions)


def test_the_image_goal_is_where_the_expert_gets():
    env, _ = table(seed=3)
    frame = task_costs.expert_goal(env)
    run = run_policy(env, "expert", 3)
    assert alike(frame, run.frames[-1])


# Evaluations


def test_an_evaluation_is_resumed_where_it_stopped(tmp_path: Path):
    journal, played = tmp_path / "episodes.jsonl", []

    def keep(run):
        played.append(run.seed)

    whole = planning.evaluate_planning(settings(), [5, 6, 7], on_episode=keep)
    planning.evaluate_planning(settings(), [5, 6], journal=journal, on_episode=keep)
    with journal.open("a") as file:
        file.write('{"seed": 7, "succ')  # killed while it wrote
    resumed = planning.evaluate_planning(settings(), [5, 6, 7], journal=journal, on_episode=keep)
    assert played == [5, 6, 7, 5, 6, 7] and resumed == whole
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 4
    with pytest.raises(ConfigError, match="max_steps: 4; .*episodes.jsonl was begun with 3"):
        planning.evaluate_planning(settings(max_steps=4), [5], journal=journal)
    journal.write_text("something else\n")
    with pytest.raises(ConfigError, match="no journal of episodes"):
        planning.evaluate_planning(settings(), [5], journal=journal)


def test_an_episode_shows_how_far_it_and_its_plans_are(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    signs = []
    for progress in (False, True):
        planner = CEM(SMALL, seed=0)
        job = {"seed": EASY, "max_steps": 4, "progress": progress, "on_step": lambda: signs.append(1)}
        mpc.run_episode(gymnasium.make(ENV), tiny_world_model(), planner, **job)
        shown = capsys.readouterr().err
        assert planner.on_round is None  # as it was
        assert progress == ("step 1 of 4" in shown) == ("plan 2: 18 of 36 frames imagined" in shown)
    assert len(signs) == 2 * (4 + 2 * 2)  # at each step, and at each round of two plans


def test_many_episodes_show_which_is_under_way(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    job = (settings(agent="model"), [3, 4], tiny_world_model)
    planning.evaluate_planning(*job, on_episode=lambda run: print("seed", run.seed), progress=True)
    printed = capsys.readouterr()
    assert printed.out == "seed 3\nseed 4\n"
    assert "episode 1 of 2, seed 3: step 2 of 3" in printed.err and "episode 2 of 2, seed 4" in printed.err


def test_workers_play_the_same_episodes_and_pass_on_what_went_wrong(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    asked = settings(agent="oracle", max_steps=2)
    alone = planning.evaluate_planning(asked, [1, 2, 3])
    together = planning.evaluate_planning(asked, [1, 2, 3], workers=2, progress=True)
    assert "episodes: 100%" in capsys.readouterr().err
    for row in (*alone, *together):
        row.pop("plan_seconds")
    assert alone == together
    with pytest.raises(InputError, match="model: broken; mend it"):
        planning.evaluate_planning(settings(agent="model"), [1, 2], broken_model, workers=2)


def test_only_the_pictured_keep_what_was_imagined():
    runs = []
    planning.evaluate_planning(settings(agent="model"), [3, 4], tiny_world_model, on_episode=runs.append, pictured=[4])
    assert [(len(run.imagined), run.trace is None) for run in runs] == [(0, True), (4, False)]


def broken_model():
    raise InputError("model", "broken", "mend it")


def test_the_summary_counts():
    rows = [
        {"seed": i, "kind": kind, "success": ok, "steps": 4 + i, "plan_seconds": [1.0, 3.0], "predicted_frames": 20}
        for i, (kind, ok) in enumerate([("edge", True), ("edge", False), ("middle", True)])
    ]
    summary = planning.summarise(rows)
    assert (summary["n"], summary["successes"], summary["steps_median"]) == (3, 2, 5.0)
    assert summary["by_kind"]["edge"]["rate"] == 0.5 and summary["wilson_95"][0] < 2 / 3 < summary["wilson_95"][1]
    assert summary["seconds_per_plan_median"] == 2.0 and summary["frames_per_plan"] == 10
    assert summary["predicted_frames_per_second"] == 5


@pytest.mark.parametrize(("field", "value"), [("agent", "human"), ("goal", "fame"), ("max_steps", 0)])
def test_unknown_settings_are_named(field: str, value: object):
    with pytest.raises(ConfigError) as caught:
        settings(**{field: value})
    assert (caught.value.field, caught.value.value) == (field, value) and caught.value.remedy


def test_a_model_of_another_frame_size_is_refused():
    with pytest.raises(InputError, match="image_size: 96; the model sees frames of 64 px"):
        planning.Player(settings(agent="model", env_options={"image_size": 96}), tiny_world_model)


def test_a_model_that_is_not_given_is_asked_for():
    with pytest.raises(ConfigError, match="agent: model; give make_model"):
        planning.evaluate_planning(settings(agent="model"), [1])


def test_a_world_without_tasks_is_refused():
    with pytest.raises(InputError, match="env_id: CartPole-v1; planning looks at it"):
        planning.Player(settings(env_id="CartPole-v1"), None)
    with pytest.raises(ConfigError, match="env_id: Nothing-v0"):
        planning.Player(settings(env_id="Nothing-v0"), None)
    with pytest.raises(InputError, match="env: CartPoleEnv; "):
        task_costs.build_cost("positions", gymnasium.make("CartPole-v1"), tiny_world_model())
    with pytest.raises(ConfigError, match="goal: fame"):
        task_costs.build_cost("fame", table()[0], tiny_world_model())


# Pictures


def frames(count: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(("dreamt", "rows"), [(True, 3), (False, 1)])
def test_a_strip_shows_frames_at_their_places(dreamt: bool, rows: int, tmp_path: Path):
    real = frames()
    imagined = 255 - real if dreamt else real[:0]
    path = strip(real, imagined, tmp_path / "strip.png", "push the red cube to the left", columns=5, scale=3)
    picture = cv2.imread(str(path))[..., ::-1]
    cell = 3 * 64 + 2
    assert picture.shape == (44 + rows * cell, 100 + 5 * cell, 3) and (picture[:44] < 128).any()
    for i, t in enumerate((0, 5, 10, 14, 19)):
        expected = [real[t], 255 - real[t], np.abs(2 * real[t].astype(int) - 255)][:rows]
        for j, frame in enumerate(expected):
            shown = picture[44 + j * cell :, 100 + i * cell :][: 3 * 64 : 3, : 3 * 64 : 3]
            assert np.array_equal(shown, frame)
    assert [p.name for p in tmp_path.iterdir()] == ["strip.png"]


@pytest.mark.parametrize("dreamt", [True, False])
def test_a_video_plays(dreamt: bool, tmp_path: Path):
    real = np.full((6, 64, 64, 3), 10, np.uint8)
    imagined = np.full((6 if dreamt else 0, 64, 64, 3), 240, np.uint8)
    path = video(real, imagined, tmp_path / "film.mp4", "bring the yellow block to the green one", scale=4)
    with imageio.get_reader(path) as reader:
        facts, shown = reader.get_meta_data(), [frame for frame in reader]
    assert facts["fps"] == 8 and facts["codec"] == "h264" and "yuv420p" in facts["pix_fmt"] and len(shown) == 6 + 8
    assert shown[0][100, 100].mean() < 40 and (not dreamt or shown[0][100, 400].mean() > 220)
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_frames_that_do_not_fit_are_refused(tmp_path: Path):
    for real, imagined in [(frames(3), frames(2)), (frames(3).astype(float), frames(3)), (frames(0), frames(0))]:
        for write in (strip, video):
            with pytest.raises(InputError, match="frames: "):
                write(real, imagined, tmp_path / "x.mp4")
    assert not list(tmp_path.iterdir())


# The command

SMALL_WORDS = ["candidates=4", "elites=2", "iterations=1", "horizon=2", "steps=2"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    model = tiny_world_model()
    world = replace(model.world, objects=dict(model.world.objects))
    save_checkpoint(tmp_path / "tiny", model.tokenizer, model.text, model.model, world, {})
    return str(tmp_path / "tiny")


def test_the_command_plans_in_a_checkpoint(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = [
        "plan",
        f"checkpoint={checkpoint}",
        f"out={tmp_path}/runs",
        "episodes=2",
        "videos=1",
        "seed=7",
        *SMALL_WORDS,
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == [
        "episode-7",
        "episode-7.mp4",
        "episode-7.png",
        "episodes.jsonl",
        "result.json",
    ]
    result = json.loads((folder / "result.json").read_text())
    assert result["seeds"] == [7, 8] and set(result["success"]) == {"7", "8"} and result["n"] == 2
    assert len(result["wilson_95"]) == 2 and result["frames_per_plan"] == 8
    assert result["seconds_per_plan_median"] > 0 and result["predicted_frames_per_second"] > 0
    assert result["settings"]["planner"]["candidates"] == 4 and "torch" in result["versions"]
    assert printed.count("seed ") == 2 and "95% interval" in printed
    assert f"video: {folder}/episode-7.mp4" in printed and f"picture: {folder}/episode-7.png" in printed


def test_the_command_makes_a_new_folder_each_time_and_resumes_an_old_one(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["plan", "agent=random", f"out={tmp_path}", "videos=0", *SMALL_WORDS]
    assert main(words) == main(words) == 0
    first, second = sorted(tmp_path.iterdir())
    assert main([*words, f"resume={first}", "episodes=2"]) == 0
    assert len(list(tmp_path.iterdir())) == 2 and len((first / "episodes.jsonl").read_text().splitlines()) == 3
    assert main([*words, f"resume={first}", "goal=image"]) == 2
    assert "was begun with 'positions'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["planner=mppi", "std=0.3", "candidates=3"], {"name": "mppi", "std": 0.3, "candidates": 3, "block": 1}),
        (
            ["planner=gradient", "iterations=1", "candidates=2", "effort=0.1"],
            {"name": "gradient", "learning_rate": 0.15},
        ),
        (["planner=icem", "candidates=4", "elites=2", "prune=true", "uncertainty=1"], {"name": "icem", "prune": True}),
    ],
)
def test_the_command_plans_with_the_planner_asked_for(words, options, checkpoint: str, tmp_path: Path):
    common = [f"checkpoint={checkpoint}", f"out={tmp_path}/runs", "videos=0", "horizon=2", "steps=2"]
    assert main(["plan", *common, *words]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    told = json.loads((folder / "result.json").read_text())["settings"]
    assert told["planner"].items() >= options.items()
    assert told["effort"] == (0.1 if "effort=0.1" in words else 0)


@pytest.mark.parametrize(
    ("field", "changed"), [("planner", {"agent": "oracle"}), ("goal", {"agent": "model", "goal": "tokens"})]
)
def test_a_gradient_that_is_not_there_is_not_followed(field: str, changed: dict):
    with pytest.raises(ConfigError, match=f"{field}: .* no gradient") as caught:
        settings(planner=planner_config("gradient", horizon=3), **changed)
    assert caught.value.field == field


def test_a_goal_of_tokens_needs_a_model_of_tokens():
    env, _ = table()
    for goal in ("tokens", "features"):
        with pytest.raises(InputError, match=f"goal: {goal}; OracleWorldModel has none: choose another goal"):
            task_costs.build_cost(goal, env, OracleWorldModel(env))


def test_penalties_are_added_where_they_are_asked_for():
    env, observation = table()
    model = tiny_world_model()
    rollout = model.rollout(model.encode([observation]), torch.full((1, 2, 3, 2), 0.5))
    plain = task_costs.build_cost("positions", env, model)
    both = task_costs.build_cost("positions", env, model, effort=2.0, uncertainty=3.0)
    extra = 2.0 * 0.25 + 3.0 * rollout.entropy_BST.mean(-1)
    actions = torch.full((1, 2, 3, 2), 0.5)
    torch.testing.assert_close(both(model, rollout, actions), plain(model, rollout, actions) + extra)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("agent=human", "agent: human; choose one of"),
        ("goal=fame", "goal: fame; choose one of"),
        ("episodes=0", "episodes: 0; give a whole number from 1"),
        ("candidates=1", "candidates: 1; give at least as many as elites"),
        ("horizon=0", "horizon: 0; give"),
        ("execute=3", "execute: 3; a plan has 2 steps"),
        ("workers=0", "workers: 0; give"),
        ("passes=0", "passes: 0; give"),
        ("seed=-1", "seed: -1; give"),
        ("checkpoint=nowhere", "checkpoint: nowhere; choose among"),
        ("planner=xyz", "planner: xyz; choose among"),
        ("frames=7", "frames: 7; one round takes 8: give at least those"),
        ("seconds=0", "seconds: 0.0; give a number above 0"),
        ("block=3", "horizon: 2; give a multiple of block, 3"),
        ("effort=-1", "effort: -1; give a finite number of at least 0"),
        ("env.options.shift=night", "shift: night; choose"),
        ("env.options.image_size=96", "image_size: 96; the model sees frames of 64 px"),
        ("resume=nowhere", "resume: nowhere; "),
    ],
)
def test_a_wrong_word_ends_the_command_before_anything_is_written(word, expected, checkpoint, tmp_path, capsys):
    words = ["plan", f"checkpoint={checkpoint}", f"out={tmp_path}/runs", *SMALL_WORDS, "episodes=1"]
    assert main([*words, word]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("")
    assert main(["plan", "agent=random", f"out={tmp_path}/file", *SMALL_WORDS]) == 2
    assert "out: " in capsys.readouterr().err


def test_a_killed_command_leaves_its_episodes_and_no_processes(tmp_path: Path):
    words = ["agent=oracle", "episodes=30", "workers=2", "videos=0", f"out={tmp_path}", *SMALL_WORDS]
    command = subprocess.Popen(
        [sys.executable, "-m", "emu_embodied", "plan", *words], stdout=subprocess.PIPE, text=True
    )
    line = command.stdout.readline()
    command.send_signal(signal.SIGTERM)
    rest, start = command.stdout.read(), time.monotonic()
    assert command.wait(30) == 143 and time.monotonic() - start < 20
    assert line.startswith("seed ") and "go on with resume=" in rest
    (folder,) = tmp_path.iterdir()
    assert all(json.loads(row) for row in (folder / "episodes.jsonl").read_text().splitlines())
