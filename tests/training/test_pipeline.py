"""The recipe end to end at tiny size: resuming is bit-identical, checkpoints load, damage and wrong settings are refused."""

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import edit_header, edit_json
from tiny_training import OBJECTS, WORLD, digest, frames, quiet, tiny_recipe

from emu_embodied.checkpoint import World, load_checkpoint
from emu_embodied.commands import main
from emu_embodied.commands._config import compose_config
from emu_embodied.commands.train import make_recipe
from emu_embodied.data.frame_cache import save_frame_cache
from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.loading import load
from emu_embodied.training.datasets import WindowSampler
from emu_embodied.training.folder import TrainingRun
from emu_embodied.training.loop import LoopConfig, train_stage
from emu_embodied.training.pipeline import adapt_checkpoint, keep_shift, train_checkpoint
from emu_embodied.types import Observation


def files_of(run: Path) -> dict[str, bytes]:
    """Every file of a run's states and checkpoint, to the byte."""
    paths = [path for part in ("tokenizer", "trajectory", "checkpoint") for path in (run / part).rglob("*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths if path.is_file()}


def stop_after(stage: str, step: int):
    def report(line: str) -> None:
        if line.startswith(f"{stage} {step}/"):
            raise KeyboardInterrupt

    return report


def test_interrupted_training_continues_bit_for_bit(tmp_path):
    cache, recipe = frames(), tiny_recipe()
    whole = train_checkpoint(cache, recipe, WORLD, quiet(tmp_path / "whole"))
    pieces = tmp_path / "pieces"
    for stage, step in (("tokenizer", 5), ("trajectory", 5)):
        with pytest.raises(KeyboardInterrupt):
            train_checkpoint(cache, recipe, WORLD, TrainingRun(pieces, report=stop_after(stage, step)))
        assert not (pieces / "checkpoint").exists()
    again = train_checkpoint(cache, recipe, WORLD, quiet(pieces))
    assert digest(again) == digest(whole)
    assert digest(pieces / "trajectory") == digest(tmp_path / "whole" / "trajectory")
    tokenizer, text, model, world, config = load_checkpoint(again)
    assert world.objects.keys() == OBJECTS.keys() and config["training"]["episodes"] == 8
    assert load(again).objects == tuple(OBJECTS)


def test_killed_training_continues_bit_for_bit(tmp_path):
    """kill -9 from outside, then the same command: the same weights. From a frame cache, without LeRobot or MuJoCo."""
    save_frame_cache(tmp_path / "frames", frames())
    without = (
        "import sys; sys.modules.update(lerobot=None, mujoco=None, datasets=None, pyarrow=None)"  # cannot be imported
    )
    program = f"{without}; from emu_embodied.commands import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "train", "preset=tiny", f"frames={tmp_path / 'frames'}", "threads=1"]

    def train(out: str) -> subprocess.Popen:
        return subprocess.Popen([*command, f"out={tmp_path / out}"], stdout=subprocess.PIPE, text=True)

    assert train("whole").wait() == 0
    killed = train("killed")
    for line in killed.stdout:
        if line.startswith("trajectory 10/"):
            killed.send_signal(signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL
    assert train("killed").wait() == 0
    files = {out: files_of(tmp_path / out) for out in ("killed", "whole")}
    assert files["killed"] == files["whole"] and {"checkpoint/config.json"} < files["whole"].keys()


def test_other_settings_are_not_mixed_into_a_run(tmp_path):
    cache, recipe = frames(), tiny_recipe()
    with pytest.raises(KeyboardInterrupt):
        train_checkpoint(cache, recipe, WORLD, TrainingRun(tmp_path, report=stop_after("tokenizer", 5)))
    other = replace(recipe, tokenizer_loop=replace(recipe.tokenizer_loop, learning_rate=0.5))
    with pytest.raises(CheckpointError, match="learning_rate"):
        train_checkpoint(cache, other, WORLD, TrainingRun(tmp_path))


def test_too_few_episodes_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="episodes"):
        train_checkpoint(frames(4), tiny_recipe(), WORLD, TrainingRun(tmp_path))


def test_a_stage_learns_and_its_average_is_returned(tmp_path):
    torch.manual_seed(0)
    module, x = torch.nn.Linear(3, 1), torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [2.0], [-1.0]])
    config = LoopConfig(steps=200, learning_rate=0.1, warmup=1, average=0.9, log_every=100)

    def loss(module, step):
        return (module(x) - y).square().mean(), {}

    trained = train_stage("toy", module, loss, config, tmp_path, report=lambda line: None)
    assert trained is not module and (trained(x) - y).square().mean() < 0.01


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: edit_json(folder, "progress.json", lambda d: d.update(step=10**9)), "progress.json: step"),
        (lambda folder: edit_json(folder, "progress.json", lambda d: d.update(step="5")), "progress.json: step"),
        (lambda folder: edit_json(folder, "progress.json", lambda d: d.pop("loop") and None), "progress.json: loop"),
        (lambda folder: edit_json(folder, "progress.json", lambda d: d["loop"].update(clip="x")), "loop.clip: x"),
        (lambda folder: edit_header(folder, "module.safetensors", renamed("weight", "other")), "no weight"),
        (lambda folder: edit_header(folder, "average.safetensors", reshaped("weight")), "weight: float32 of shape"),
        (lambda folder: edit_header(folder, "optimiser.safetensors", renamed("0.0.exp_avg", "9.x.y")), "9.x.y"),
        (lambda folder: edit_header(folder, "optimiser.safetensors", renamed("0.0.step", "0.1.step")), "0.1.step|step"),
        (lambda folder: edit_header(folder, "optimiser.safetensors", reshaped("0.0.exp_avg")), "0.0.exp_avg"),
        (lambda folder: edit_header(folder, "optimiser.safetensors", lambda header, body: ({}, b"")), None),
    ],
)
def test_a_state_of_right_sums_and_other_content_is_refused(tmp_path, change, named):
    module, config = torch.nn.Linear(3, 1, bias=False), LoopConfig(steps=4, save_every=1, warmup=1)

    def run(steps: int) -> None:
        def loss(module, step):
            if step == steps:
                raise KeyboardInterrupt
            return module(torch.ones(2, 3)).square().mean(), {}

        train_stage("toy", module, loss, config, tmp_path, report=lambda line: None)

    with pytest.raises(KeyboardInterrupt):
        run(2)
    change(tmp_path / "toy")
    if named is None:  # optimisers that remember nothing begin anew
        run(4)
        return
    with pytest.raises(CheckpointError, match=named) as caught:
        run(4)
    assert str(tmp_path) in str(caught.value)


def renamed(old: str, new: str):
    return lambda header, body: header.update({new: header.pop(old)})


def reshaped(name: str):
    return lambda header, body: header[name].update(shape=[*header[name]["shape"], 1])


def test_windows_follow_the_episodes():
    cache = frames()
    codes = torch.arange(len(cache))[:, None].expand(-1, 4)
    text = torch.zeros(cache.episodes, 5, dtype=torch.int64)
    sampler = WindowSampler(cache, codes, text, tuple(OBJECTS), seed=3)
    for step in range(30):
        batch = sampler.batch(step, 16, 4)
        frame = batch.codes_BFN[..., 0]
        assert (frame[:, 0] // 12 == frame[:, -1] // 12).all()  # one episode
        gaps = frame.diff(dim=1)
        assert ((gaps == 1) | ((gaps == 0) & (frame[:, :-1] % 12 == 0))).all()  # in order, or the first frame repeated
        for b, t in (gaps == 1).nonzero().tolist():
            here = int(frame[b, t])
            assert np.allclose(batch.actions_BFA[b, t], cache.actions[here])
            assert batch.reward_BF[b, t] == cache.rewards[here] and batch.known_BF3[b, t].all()
            assert np.allclose(batch.positions_BFO2[b, t, 0], cache.states[here + 1, :2])
        repeated = gaps == 0
        assert (batch.actions_BFA[repeated] == 0).all() and (
            batch.known_BF3[repeated] == torch.tensor([0.0, 0, 1])
        ).all()
        again = sampler.batch(step, 16, 4)
        assert all(torch.equal(getattr(batch, k), getattr(again, k)) for k in vars(batch))


def test_windows_of_a_random_world_are_drawn_evenly():
    cache = frames(4, 12)
    codes, text = torch.arange(48)[:, None].expand(-1, 4), torch.zeros(4, 16, dtype=torch.long)
    share = make_recipe(compose_config("train", ["preset=tiny", "recipe.trajectory.contact_share=0.0"]))
    sampler = WindowSampler(cache, codes, text, tuple(OBJECTS), 0, share.trajectory.contact_share)
    batches = torch.cat([sampler.batch(step, 64, 3).codes_BFN[:, 1, 0] for step in range(40)]) % 12
    counts = torch.bincount(batches, minlength=12)[1:11].float()
    assert (counts - counts.mean()).abs().max() < 4 * counts.mean() ** 0.5


def test_windows_prefer_contacts_in_which_much_moves():
    cache = frames(4, 12)
    columns = cache.names["state"]
    moving = cache.states.reshape(4, 12, -1)
    for name, start, until in (
        ("red", 3, 7),
        ("green", 5, 7),
    ):  # red is pushed on arrival at frames 3..6, green at 5 and 6
        x = columns.index(f"{name}.x")
        moving[..., x] = np.cumsum((np.arange(12) >= start) & (np.arange(12) < until))
        moving[..., x + 1] = 0
    sampler = WindowSampler(
        cache, torch.zeros(48, 64, dtype=torch.int16), torch.zeros(4, 16, dtype=torch.long), tuple(OBJECTS), seed=0
    )
    near = {
        int(f) % 12: w for f, w in zip(sampler.contact_frames, np.diff(sampler.contact_weight, prepend=0), strict=True)
    }
    assert near == {1: 1, 2: 1, 3: 4, 4: 4, 5: 4, 6: 4}


@pytest.mark.parametrize("noise", ["absorbing", "uniform", "metric"])
def test_a_checkpoint_that_decodes_token_by_token_is_adapted(tmp_path, noise):
    """A causal model learns to draw the frames that it would have drawn token by token, and stays what it is."""
    cache = frames()
    words = [
        "preset=tiny",
        "recipe.tokenizer_loop.steps=30",
        "recipe.trajectory_loop.steps=60",
        f"recipe.noise={noise}",
    ]
    words += [
        "recipe.trajectory_loop.warmup=5",
        "recipe.trajectory.autoregressive_until=1.0",
        "recipe.context_frames=0",
    ]
    words += ["recipe.trajectory.joint_until=1.0", "recipe.trajectory_loop.learning_rate=0.01"]
    recipe = make_recipe(compose_config("train", words))
    logs: dict[str, list[str]] = {"causal": [], "adapted": []}
    source = train_checkpoint(cache, recipe, WORLD, TrainingRun(tmp_path / "causal", report=logs["causal"].append))
    adapted = adapt_checkpoint(cache, recipe, source, TrainingRun(tmp_path / "adapted", report=logs["adapted"].append))

    def figure(log: str, name: str, line: int) -> float:
        values = [re.search(rf" {name} ([0-9.]+)", text) for text in logs[log]]
        return [float(found[1]) for found in values if found][line]

    assert figure("adapted", "noisy", -1) < figure("adapted", "noisy", 0) - 0.05
    assert figure("adapted", "causal", -1) < figure("causal", "causal", -1) + 0.1
    _, _, model, _, config = load_checkpoint(adapted)
    assert model.config.noise == noise and config["training"]["recipe"]["trajectory"]["autoregressive_until"] == 0
    assert model.config.next_token_shift and config["training"]["recipe"]["next_token_shift"]
    world_model = load(adapted, passes=3)
    history = world_model.encode([Observation(cache.pixels[0], np.zeros(2, np.float32), cache.instructions[0])])
    rollout = world_model.rollout(history, np.zeros((1, 2, 2, 2), np.float32))
    assert ((rollout.codes_BSTN >= 0) & (rollout.codes_BSTN < 64)).all()


@pytest.mark.parametrize(
    ("training", "had", "gets"),
    [
        ({}, False, True),  # nothing known of a noisy half: an autoregressive checkpoint from elsewhere
        ({"recipe": {"trajectory": {"autoregressive_until": 1.0}}}, False, True),
        ({"recipe": {"trajectory": {"autoregressive_until": 0.1}}}, False, False),
        ({"recipe": {"trajectory": {"autoregressive_until": 0.0}}}, True, True),
    ],
)
def test_an_untrained_noisy_half_gets_the_shift_and_a_trained_one_keeps_its_wiring(training, had, gets):
    assert keep_shift({"training": training, "model": {"next_token_shift": had}}) is gets


@pytest.mark.parametrize(("word", "gets"), [("shift=null", False), ("shift=true", True)])
def test_adapting_is_judged_in_the_checkpoints_own_world(tmp_path, word, gets):
    """A checkpoint that knows two objects and another scale: the environment's five would not fit its heads."""
    cache = frames()
    own = World({name: OBJECTS[name] for name in ("pusher", "red")}, (20.0, -20.0), "", ("x", "y"))
    source = train_checkpoint(cache, tiny_recipe(), own, quiet(tmp_path / "source"))
    save_frame_cache(tmp_path / "frames", cache)
    words = ["preset=tiny", "recipe.trajectory_loop.steps=4", "recipe.trajectory_loop.evaluate_every=2", "distil=false"]
    words += ["stage=dida", f"from={source}", f"frames={tmp_path / 'frames'}", f"out={tmp_path / 'out'}", word]
    assert main(["train", *words]) == 0
    _, _, model, world, _ = load_checkpoint(tmp_path / "out" / "checkpoint")
    assert tuple(world.objects) == ("pusher", "red") and tuple(world.position_scale) == (20.0, -20.0)
    assert model.config.next_token_shift is gets


def test_adapting_needs_a_checkpoint_and_frames_of_its_size(tmp_path, capsys):
    save_frame_cache(tmp_path / "frames", frames())
    words = ["train", "preset=tiny", f"frames={tmp_path / 'frames'}", f"out={tmp_path / 'out'}"]
    for more, said in (
        (["stage=dida"], "from: None"),
        (["stage=trajectory"], "from: None"),
        (["stage=probes", "from=nano-tabletop"], "from: nano-tabletop"),
        (["stage=dada"], "stage: dada"),
        (["shift=1"], "shift: 1"),
        (["stage=dida", "from=nobody"], "checkpoint: nobody"),
        (["recipe.noise=pink"], "recipe.noise: pink"),
        (["recipe.trajectory_loop.optimiser=adam"], "recipe.trajectory_loop.optimiser: adam"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and not (tmp_path / "out").exists()
