"""The shipped checkpoints that draw what a sentence asks for, and the commands that find them by their names."""

import json

import cv2
import gymnasium
import numpy as np
import pytest

import emu_embodied.envs  # noqa: F401  registers them
from emu_embodied.commands import main
from emu_embodied.envs.pusht.geometry import AIMS_CM
from emu_embodied.errors import InputError
from emu_embodied.loading import checkpoint_path, load, load_proposer
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.rollouts.evaluation.instruction_sampling import sampled_starts
from emu_embodied.rollouts.evaluation.subgoals import Bench, ImageSettings, judge_images
from emu_embodied.rollouts.goals.subgoal_filter import FilteredProposer, ScriptedSubgoals, Sight
from emu_embodied.rollouts.goals.subgoal_setup import Following
from emu_embodied.types import AGENT_POS, PIXELS, Observation, Subgoal

NAME, PUSHT = "nano-language", "nano-pusht-language"


@pytest.fixture(scope="module")
def proposer():
    return load_proposer(NAME, device="cpu")


@pytest.fixture(scope="module")
def scene():
    """A red cube in the middle and a blue one above it."""
    env = gymnasium.make("emu_embodied/TabletopPush-v0")
    cubes = {"red": (0, -2, 0), "blue": (2, 8, 0.3)}
    seen, _ = env.reset(
        seed=0, options={"cubes": cubes, "pusher": (9, -9), "instruction": "push the red cube to the left"}
    )
    env.close()
    return Observation(seen[PIXELS], seen[AGENT_POS], "push the red cube to the left")


@pytest.mark.parametrize("name", [NAME, PUSHT])
def test_it_is_small(name):
    assert sum(path.stat().st_size for path in checkpoint_path(name).iterdir()) <= 20e6


def test_it_draws_what_is_asked_for(proposer):
    bench = Bench(lambda: None, lambda: proposer)
    starts = sampled_starts(bench.env, 16, False, 13_000_000)
    rows = judge_images(bench, ImageSettings(Following(NAME), planner=None), list(starts), starts.__getitem__)
    assert np.mean([row["fulfilled"] for row in rows]) >= 0.5
    assert np.mean([row["identity_kept"] for row in rows]) >= 0.5


def test_its_words_end_its_pictures_follow_and_it_sees_the_scene(proposer, scene):
    chain = proposer.propose(scene)
    assert chain and chain[-1].places[proposer.objects.index("red"), 0] < -4
    assert "left" in chain[-1].caption
    seen = dict(zip(proposer.objects, proposer.look(scene.pixels), strict=True))
    assert np.linalg.norm(seen["red"][:2] - (0, -2)) < 1.5 and np.linalg.norm(seen["blue"][:2] - (2, 8)) < 1.5
    assert seen["green"][2] < 0.5


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("push the green cube to the left", "sees no green"),
        ("push the red cube onto the sofa", "trained without the words"),
        ("", "say what"),
    ],
)
def test_what_it_cannot_follow_it_refuses(proposer, scene, told, why):
    with pytest.raises(InputError, match=why):
        proposer.propose(Observation(scene.pixels, scene.agent_pos, told))


def pictures() -> dict[str, np.ndarray]:
    """Pictures (64, 64, 3) of nothing that a table-top model knows."""
    rng, ones = np.random.default_rng(0), np.ones((64, 64, 3))
    made = {
        "noise": rng.integers(0, 256, (64, 64, 3)),
        "grey noise": rng.integers(0, 256, (64, 64, 1)) * ones,
        "faint noise": np.clip(rng.normal(120, 12, (64, 64, 3)), 0, 255),
        "blocks": np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))),
        "red": ones * (219, 41, 33),
        "white": 255 * ones,
        "gradient": np.linspace(0, 255, 64)[:, None, None] * ones,
    }
    return {name: picture.astype(np.uint8) for name, picture in made.items()}


@pytest.mark.parametrize("name", pictures())
def test_a_picture_of_nothing_it_knows_shows_no_red_cube(name: str, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "picture.png"), pictures()[name])
    words = ["subgoal", f"image={tmp_path}/picture.png", f"out={tmp_path}/out", "instruction='push the red cube to the left'"]
    for mode in ("subgoals", "edit"):
        assert main([*words, f"mode={mode}"]) == 2
        said = capsys.readouterr().err
        assert "of 255 off when drawn again; the model does not see its world in it" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_scenes_of_its_world_are_never_strange(proposer):
    for env_id, draws in (("TabletopPush-v0", proposer), ("PushT-v0", load_proposer(PUSHT, device="cpu"))):
        if env_id == "PushT-v0":
            pytest.importorskip("gym_pusht")
        for options in ({}, {"shift": "camera"}, {"shift": "colour"}) if draws is proposer else ({},):
            env = gymnasium.make(f"emu_embodied/{env_id}", **options)
            env.action_space.seed(0)
            for seed in range(4):
                env.reset(seed=seed)
                frames = [env.step(env.action_space.sample())[0][PIXELS] for _ in range(3)]
                assert max(map(draws.strangeness, frames)) < 15
            env.close()


def test_the_commands_find_it_by_name(tmp_path, capsys):
    assert main(["subgoal", "env.options.spoken=true", "seed=1", f"out={tmp_path / 'drawn'}"]) == 0
    assert "key frames in" in capsys.readouterr().out
    words = [
        "plan",
        "goal=language",
        "env.options.spoken=true",
        "steps=4",
        "candidates=16",
        "elites=4",
        "iterations=1",
        "horizon=4",
    ]
    assert main([*words, "execute=4", f"out={tmp_path / 'planned'}"]) == 0
    (folder,) = (tmp_path / "planned").iterdir()
    row = json.loads((folder / "result.json").read_text())["episodes"][0]
    assert row["subgoals"][0]["caption"] and (folder / "episode-0.png").is_file()


def test_chains_are_tried_out_by_a_model_that_does_not_know_the_words(scene):
    told = "the red cube should be at the bottom edge of the table, please, and nowhere else"
    model = load("nano-tabletop", device="cpu")
    ask = Observation(scene.pixels, scene.agent_pos, told)
    places = np.array([[0, -12, 1], [0, -7, 1], [0, 0, 0], [2, 8, 1], [0, 0, 0]], np.float32)
    chain = [Subgoal("push the red cube to the bottom", scene.pixels, places, 0.0, True)]
    trial = CEM(CEMConfig(candidates=8, iterations=1, elites=2, horizon=2, execute=2), 0)
    filtered = FilteredProposer(ScriptedSubgoals(chain, model.objects), Sight.of(model.world), 1, model, trial)
    assert filtered.propose(ask) == chain and filtered.drawn == 1


def test_it_is_a_world_model_too():
    assert load(NAME, device="cpu").action_dim == 2


def test_pushts_t_comes_nearer_and_its_edit_is_on_the_mark():
    pytest.importorskip("gym_pusht")
    env, draws = gymnasium.make("emu_embodied/PushT-v0"), load_proposer(PUSHT, device="cpu")
    tee = [draws.objects.index(name) for name in ("T", "tip")]
    ends = []
    for seed in range(4):
        seen, info = env.reset(seed=seed)
        start = Observation(seen[PIXELS], seen[AGENT_POS], info["task"])
        chain = draws.propose(start, 8)
        drawn = draws.edit(Observation(seen[PIXELS], seen[AGENT_POS], "make the T be on the target"))
        left = [np.linalg.norm(subgoal.places[tee, :2] - AIMS_CM, axis=-1).mean() for subgoal in (chain[-1], drawn)]
        ends.append([left[0] < info["distance"], left[1] < 1.0])
    assert np.mean(ends) > 0.8
