"""What can be done with a model of somebody's robot, which knows no objects and no env: judged, dreamt with, planned with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import gymnasium
import numpy as np
import pytest
import torch
from arm import arm_model
from foreign import TOP, WRIST, write_foreign
from tiny import WORLD, tiny_world_model

import emu_embodied.envs  # noqa: F401
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.commands import main
from emu_embodied.commands._config import compose_config
from emu_embodied.commands._runs import env_options
from emu_embodied.commands.evaluate import rescaled
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.images import letterbox
from emu_embodied.envs.imagined.recorded import RecordedStarts
from emu_embodied.errors import ConfigError, DatasetError, InputError
from emu_embodied.loading import load
from emu_embodied.policies.costs import GoalImage, RewardHead
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.rollouts.agents.mpc import run_episode
from emu_embodied.rollouts.evaluation import frame_metrics, prediction, prediction_metrics
from emu_embodied.rollouts.evaluation.tables import as_markdown
from emu_embodied.rollouts.viewer.session import Play
from emu_embodied.units import ActionScale

OWN = "own_robot/Arm-v0"
UNLABELLED = replace(WORLD, objects={}, env_id="", eye="", landmarks={}, known=("reward",))


class Arm(gymnasium.Env):
    """An env of somebody else's: it takes a size, no image_size, and measures nothing."""

    def __init__(self, size: int = 96) -> None:
        pixels, place = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8), gymnasium.spaces.Box(-1, 1, (2,))
        self.observation_space = gymnasium.spaces.Dict({"pixels": pixels, "agent_pos": place})
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


class Camera(gymnasium.Env):
    """An arm that shows its native camera, which is wider than high, and where its disc is; it says nothing of itself."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    observation_space = gymnasium.spaces.Dict(
        pixels=gymnasium.spaces.Box(0, 255, (48, 80, 3), np.uint8), agent_pos=gymnasium.spaces.Box(-9, 9, (7,))
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(8, 40, 2)
        return self.seen(), {"task": "reach"}

    def step(self, action):
        self.place = np.clip(self.place + 4 * action, 8, 40)
        return self.seen(), 0.0, False, False, {"is_success": bool(self.place[0] < 8)}

    def seen(self):
        pixels, (y, x) = np.full((48, 80, 3), 200, np.uint8), self.place.astype(int)
        pixels[y - 4 : y + 4, x : x + 8] = (200, 30, 30)
        return {"pixels": pixels, "agent_pos": np.zeros(7, np.float32)}


WIDE = "own_robot/Camera-v0"
BUDGET = ["candidates=4", "elites=2", "iterations=1", "horizon=2"]

if OWN not in gymnasium.registry:
    gymnasium.register(OWN, Arm)
    gymnasium.register(WIDE, Camera)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint without objects and env."""
    model, path = tiny_world_model(world=UNLABELLED), tmp_path_factory.mktemp("own") / "arm"
    save_checkpoint(path, model.tokenizer, model.text, model.model, UNLABELLED, {})
    return str(path)


def recordings(lengths: tuple[int, ...]) -> FrameCache:
    """Episodes of noise, without labels."""
    rng, frames = np.random.default_rng(0), sum(lengths)
    return FrameCache(
        pixels=rng.integers(0, 256, (frames, 64, 64, 3), np.uint8),
        agent_pos=np.zeros((frames, 2), np.float32),
        states=np.zeros((frames, 0), np.float32),
        actions=rng.uniform(-1, 1, (frames, 2)).astype(np.float32),
        rewards=np.zeros(frames, np.float32),
        successes=np.zeros(frames, bool),
        episode_starts=np.cumsum((0, *lengths)),
        instructions=("reach",) * len(lengths),
        names={"state": [], "action": ["right", "up"]},
        fps=4.0,
    )


def test_a_model_without_objects_is_judged_by_its_frames(tmp_path: Path):
    model = tiny_world_model(world=UNLABELLED)
    truth = prediction.Truth(recordings((14, 3, 20)), UNLABELLED, least=frame_metrics.START + 6)
    assert truth.episodes == 2 and truth.length == 14
    figures = {figure.name: figure for figure in frame_metrics.frame_table(model, truth, 5)}
    true = prediction.OpenLoop(model, truth, (frame_metrics.START,), 5)
    wanted = prediction_metrics.psnr(true.frames[:, -1], true.real[:, -1]).mean()
    assert figures["5 steps: PSNR, dB"].value == pytest.approx(wanted)
    copied = prediction_metrics.psnr(truth.pixels[:, 4], truth.pixels[:, 9]).mean()
    assert figures["5 steps: PSNR, dB"].copy_last == pytest.approx(copied) and figures["1 step: PSNR, dB"].n == 2
    assert all(figure.value is not None for figure in figures.values())
    assert "| 5 steps: PSNR, dB |" in as_markdown(list(figures.values()))
    assert prediction.picture_worst(model, truth, 1, tmp_path, 5) == 1 and (tmp_path / "worst-01.png").is_file()
    with pytest.raises(DatasetError, match="longest episode: 20 frames; judging takes 35"):
        prediction.Truth(recordings((14, 3, 20)), UNLABELLED, least=35)


@pytest.mark.parametrize("verb", ["imagine", "play"])
def test_dreams_without_an_env_to_start_in_are_one_sentence(verb: str, checkpoint: str, capsys, tmp_path: Path):
    words = [f"out={tmp_path / 'dreams'}", "episodes=1"] if verb == "imagine" else ["port=0"]
    assert main([verb, f"checkpoint={checkpoint}", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "starts=DATASET" in error and "Malformed" not in error
    assert not list(tmp_path.iterdir())
    model = tiny_world_model(world=UNLABELLED)
    with pytest.raises(InputError, match="trained on recordings alone"):
        gymnasium.make("emu_embodied/Imagined-v0", world_model=model).reset(seed=0)


def test_an_env_gets_the_options_that_it_takes():
    ours = compose_config("plan", ["env.options.image_size=96"])
    assert env_options(ours.env)["image_size"] == 96 and "cubes" in env_options(ours.env)
    assert env_options(compose_config("plan", [f"env.id={OWN}"]).env) == {}
    assert env_options(compose_config("plan", [f"env.id={OWN}", "env.options.size=64"]).env) == {"size": 64}
    given = compose_config("plan", [f"env.id={OWN}", "env.options.image_size=96"])
    assert env_options(given.env) == {"image_size": 96}  # what a user asks for is not dropped


def test_planning_by_reward_in_an_env_of_ones_own(checkpoint: str, tmp_path: Path, capsys):
    words = ["plan", f"env.id={OWN}", f"checkpoint={checkpoint}", "steps=2", f"out={tmp_path}"]
    assert main([*words, "env.options.size=64"]) == 2
    assert "choose goal=reward" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/episodes.jsonl")), "what does not fit is said before a folder is made"
    budget = ["goal=reward", "env.options.size=64", *BUDGET]
    assert main([*words, *budget]) == 0
    assert "not done  1 plans" in capsys.readouterr().out
    (result,) = tmp_path.glob("*/result.json")
    assert json.loads(result.read_text())["episodes"][0]["end_cm"] is None
    assert main(["report", str(result.parent)]) == 0


def test_a_goal_that_the_data_never_told_is_refused_before_a_folder_is_made(tmp_path: Path, capsys):
    model, world = tiny_world_model(world=UNLABELLED), replace(UNLABELLED, known=())
    save_checkpoint(tmp_path / "arm", model.tokenizer, model.text, model.model, world, {})
    words = [f"env.id={OWN}", "env.options.size=64", f"checkpoint={tmp_path / 'arm'}", f"out={tmp_path / 'runs'}"]
    assert main(["plan", "goal=reward", *words]) == 2
    assert "goal=reward: the model does not know its reward; " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_datasets_actions_are_judged_in_the_checkpoints_scale(capsys):
    cache = recordings((14,))
    own, wider = np.array([[0.0, 0.1], [0.1, 0.2]], np.float32), np.array([[0.0, 0.1], [0.2, 0.2]], np.float32)
    cache = replace(cache, action_scale=own[None])
    assert rescaled(cache, own[None]) is cache and rescaled(cache, np.array([])) is cache
    wide = rescaled(cache, wider[None])
    assert np.allclose(wide.actions, cache.actions * [0.5, 1], atol=1e-6) and capsys.readouterr().out == ""
    assert np.abs(rescaled(replace(cache, action_scale=wider[None]), own[None]).actions).max() <= 1
    assert "are clipped" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="several robots"):
        rescaled(cache, np.stack([wider, 2 * wider]))


def test_an_envs_own_frames_are_seen_as_its_datasets_are(checkpoint: str):
    model, seen = load(checkpoint), []
    real = model.encode
    model.encode = lambda observations: seen.extend(observations) or real(observations)
    planner, env = CEM(CEMConfig(candidates=4, elites=2, iterations=1, horizon=2)), Camera()
    run = run_episode(env, model, planner, lambda env, model: GoalImage(Camera.seen(env.unwrapped)["pixels"]), max_steps=3)
    assert run.frames.shape == run.imagined.shape == (4, 64, 64, 3)
    env.reset(seed=0)
    into = np.empty((64, 64, 3), np.uint8)
    letterbox(env.seen()["pixels"], into)
    assert np.array_equal(run.frames[0], into) and np.array_equal(seen[0].pixels, into)
    assert not into[:12].any() and not into[-12:].any(), "black above and below, as in training"


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(0, 255, (48, 80, 3), np.uint8),
        gymnasium.spaces.Dict(agent_pos=gymnasium.spaces.Box(-1, 1, (2,))),
        gymnasium.spaces.Dict(pixels=gymnasium.spaces.Box(0, 255, (48, 80), np.uint8)),
        gymnasium.spaces.Dict(pixels=gymnasium.spaces.Box(0, 1, (48, 80, 3), np.float32)),
    ],
)
def test_an_env_without_pictures_is_refused_before_it_is_reset(checkpoint: str, space: gymnasium.Space):
    env = Camera()
    env.observation_space = space
    with pytest.raises(InputError, match="env.observation_space"):
        run_episode(env, load(checkpoint), max_steps=1)
    assert not hasattr(env, "place")


def test_the_command_plans_to_a_picture_in_an_env_of_ones_own(checkpoint: str, tmp_path: Path, capsys):
    env = Camera()
    env.reset(seed=3)
    cv2.imwrite(str(tmp_path / "goal.png"), env.seen()["pixels"])
    words = ["plan", f"env.id={WIDE}", f"checkpoint={checkpoint}", "steps=2", f"out={tmp_path / 'out'}", *BUDGET]
    assert main([*words, "goal=image"]) == 2
    assert "picture=FILE" in capsys.readouterr().err
    wrong = {"picture=nowhere.png goal=image": "picture: nowhere.png", f"picture={__file__} goal=image": "PNG"}
    wrong |= {f"picture={tmp_path / 'goal.png'} goal=reward": "give goal=image"}
    for asked, said in wrong.items():
        assert main([*words, *asked.split()]) == 2 and said in (error := capsys.readouterr().err), error
    assert not (tmp_path / "out").exists()
    for goal in ("image", "tokens", "features"):
        assert main([*words, f"goal={goal}", f"picture={tmp_path / 'goal.png'}"]) == 0, capsys.readouterr().err
    folder = min((tmp_path / "out").iterdir())
    cv2.imwrite(str(tmp_path / "goal.png"), np.zeros((48, 80, 3), np.uint8))
    again = [*words, "goal=image", f"picture={tmp_path / 'goal.png'}", "episodes=2", f"resume={folder}"]
    assert main(again) == 2 and "picture_digest" in capsys.readouterr().err, "another picture is another goal"


@pytest.mark.parametrize("where", ["env", "starts"])
def test_a_robot_without_a_simulator_is_played_from_its_own_frames(checkpoint: str, where: str, tmp_path: Path):
    model = load(checkpoint)
    env = Camera() if where == "env" else RecordedStarts(recordings((4, 5)), ActionScale.of(model))
    play = Play(model, env)
    try:
        shown = [play.reset(seed) for seed in (1, 1, 2)]
        assert shown[0]["frame"]["imagined"] == shown[1]["frame"]["imagined"] != shown[2]["frame"]["imagined"]
        assert play.step(shown[2]["scene"]["number"], 0, [0.5, 0.5])["frame"]["id"] == 1
    finally:
        play.close()
    with pytest.raises(InputError, match="real"):
        Play(model, env, real=True)


def test_play_says_where_scenes_begin(checkpoint: str, capsys):
    assert main(["play", f"checkpoint={checkpoint}", "port=0", f"env.id={WIDE}", "starts=here"]) == 2
    assert "give one of both" in capsys.readouterr().err
    assert main(["play", f"checkpoint={checkpoint}", "port=0", "env.id=nobody/Env-v0"]) == 2
    assert "env.id: nobody/Env-v0" in capsys.readouterr().err
    assert main(["play", f"checkpoint={checkpoint}", "port=0", "starts=nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_evaluation_never_overwrites_the_first(tmp_path: Path, capsys):
    model, data = arm_model(), tmp_path / "data"
    save_checkpoint(tmp_path / "arm", model.tokenizer, model.text, model.model, model.world, {})
    write_foreign(data, lengths=(14, 14), cameras=(TOP, WRIST))
    words = ["evaluate", f"checkpoint={tmp_path / 'arm'}", "episodes=2", "horizon=3", "horizons=[]", "worst=0"]
    words += [f"out={tmp_path / 'judged'}", f"data={data}", "camera=top"]
    assert main(words) == 0, capsys.readouterr().err
    before = (tmp_path / "judged/result.json").read_bytes()
    for other in ("camera=wrist", "passes=2", "horizon=2", "episodes=1", "engine=onnx"):
        assert main([*words, other]) == 2
        error = capsys.readouterr().err
        assert f"settings.{other.partition('=')[0]}" in error and "use another out=" in error
        assert (tmp_path / "judged/result.json").read_bytes() == before
    assert main([*words, "workers=1"]) == 0, "what changes no figure may change"
    shutil.rmtree(data)
    write_foreign(data, lengths=(14, 15), cameras=(TOP, WRIST))
    assert main(words) == 2 and "frames: " in capsys.readouterr().err, "the same place, and other data"
    (tmp_path / "judged/result.json").write_text("[]")
    assert main(words) == 2 and "none of an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    "seen",
    [
        np.zeros((48, 80, 3), np.uint8),
        {"agent_pos": np.zeros(7)},
        *({"pixels": pixels} for pixels in (None, torch.zeros(48, 80, 3), np.zeros((48, 80)), np.zeros((48, 80, 3)))),
        *({"pixels": np.zeros(shape, np.uint8)} for shape in ((48, 80), (0, 80, 3), (3, 48, 80), (80, 48, 3))),
    ],
)
def test_an_env_that_does_not_show_what_it_promises_is_one_typed_error(checkpoint: str, seen):
    env = Camera()
    env.seen = lambda: seen
    with pytest.raises(InputError, match="observation"):
        run_episode(env, load(checkpoint), cost_builder=lambda env, model: RewardHead(), max_steps=1)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        *(("max_steps", value) for value in (0, -1, 2.5, "a", None, True)),
        *(("execute", value) for value in (0, -1, 1.5, "a", None)),
        ("planner", "cem"),
        ("cost", lambda env, model: None),
    ],
)
def test_an_episode_says_which_argument_is_wrong(checkpoint: str, field: str, given):
    name = {"cost": "cost_builder"}.get(field, field)
    with pytest.raises(InputError, match=f"^{field}: "):
        run_episode(Camera(), load(checkpoint), **{"cost_builder": lambda env, model: RewardHead(), name: given})
    for env, model, wrong in (("Camera-v0", load(checkpoint), "env"), (Camera(), checkpoint, "model")):
        with pytest.raises(InputError, match=f"^{wrong}: "):
            run_episode(env, model)


def test_a_distance_of_others_need_not_be_a_number(checkpoint: str):
    env = Camera()
    env.reset = lambda **how: (Camera.reset(env, **how)[0], {"distance": "far"})
    budget = CEM(CEMConfig(candidates=4, elites=2, iterations=1, horizon=2))
    goal = Camera.observation_space["pixels"].sample()
    assert np.isnan(run_episode(env, load(checkpoint), budget, lambda env, model: GoalImage(goal), max_steps=1).distances).all()
