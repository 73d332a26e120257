"""Dreams as datasets: what is written is what was dreamt, a kill loses one part, and LeRobot's own ACT trains on it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORLD, tiny_world_model

from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.commands import main
from emu_embodied.data.frame_cache import FrameCache, build_frame_cache, frames_for
from emu_embodied.errors import DatasetError
from emu_embodied.rollouts.collection import imagined as module
from emu_embodied.rollouts.collection.imagined import ImagineSettings, imagine
from emu_embodied.training.datasets import WindowSampler
from emu_embodied.types import ACTION, OBS_IMAGE, OBS_STATE

SETTINGS = ImagineSettings("tiny", "0123", episodes=5, steps=6, seed=3)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "EPISODES_PER_SHARD", 2)


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def starts() -> FrameCache:
    rng, frames = np.random.default_rng(0), 12
    return FrameCache(
        rng.integers(0, 256, (frames, 64, 64, 3), np.uint8),
        rng.uniform(-9, 9, (frames, 2)).astype(np.float32),
        *(np.zeros((frames, size), np.float32) for size in (0, 2)),
        np.zeros(frames, np.float32),
        np.zeros(frames, bool),
        np.array([0, 5, 12]),
        ("push the red cube to the left", "move the blue cube to the right"),
        {"agent_pos": ["x", "y"], "state": [], "action": ["x", "y"]},
        5,
    )


@pytest.fixture(scope="module")
def whole(model, starts, tmp_path_factory) -> Path:
    """The dataset as one undisturbed call makes it."""
    root = tmp_path_factory.mktemp("whole") / "dreams"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EPISODES_PER_SHARD", 2)
        summary = imagine(model, SETTINGS, root, starts, report=str)
    assert summary.complete and (summary.episodes, summary.frames, summary.recorded) == (5, 35, 5)
    return root


def same(one: Path, other: Path) -> bool:
    a, b = build_frame_cache(one), build_frame_cache(other)
    names = ("pixels", "agent_pos", "states", "actions", "rewards", "successes", "episode_starts")
    return a.instructions == b.instructions and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


def test_a_dream_is_written_as_it_was_dreamt(model, starts, whole):
    cache = frames_for(whole)
    assert cache.episodes == 5 and cache.fps == 5 and not cache.dropped and cache.known.all()
    assert cache.names["action"] == ["right", "up"] and cache.names["state"][:3] == [
        "pusher.x",
        "pusher.y",
        "pusher.present",
    ]
    codes = model.tokenizer.encode(torch.from_numpy(starts.pixels))
    rendered = model.decode(codes)
    part = cache.select(range(0, 1))
    assert any(np.array_equal(part.pixels[0], frame) for frame in rendered)  # a start, as the model sees it
    assert np.abs(cache.actions).max() <= 1 and cache.actions.std() > 0.3
    assert np.array_equal(part.agent_pos[1:], np.clip(part.states[1:, :2], -16, 16))
    notes = json.loads((whole / "meta" / "emu_embodied.json").read_text())
    assert notes["imagined"] and notes["settings"]["weights"] == "0123" and notes["settings"]["seed"] == 3
    sampler = WindowSampler(cache, torch.zeros(35, 4), torch.zeros(5, 4), model.objects, seed=0)
    assert sampler.batch(0, 4, 3).known_BF3[..., 2].all()


def test_interrupted_and_continued_it_is_the_same_dataset(model, starts, whole, tmp_path):
    root = tmp_path / "dreams"

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imagine(model, SETTINGS, root, starts, stop)
    assert build_frame_cache(root).episodes == 2  # joined, and LeRobot's to read
    (tmp_path / "dreams.parts" / "part-00001.77.partial").mkdir()  # what a kill leaves
    lines = []
    summary = imagine(model, SETTINGS, root, starts, lines.append)
    assert summary.complete and summary.recorded == 3 and len(lines) == 2 and same(root, whole)
    assert (
        imagine(model, SETTINGS, root, starts, pytest.fail).recorded == 0 and not (tmp_path / "dreams.parts").exists()
    )
    with pytest.raises(DatasetError, match="weights: 4567; .* begun with '0123'"):
        imagine(model, replace(SETTINGS, weights="4567"), root, starts, str)


def test_a_crash_in_a_part_leaves_the_finished_ones(model, starts, tmp_path, monkeypatch):
    write, calls = module.write_shard, []

    def failing(*job):
        calls.append(job)
        if len(calls) == 2:
            raise OSError("no space left")
        write(*job)

    monkeypatch.setattr(module, "write_shard", failing)
    with pytest.raises(OSError):
        imagine(model, SETTINGS, tmp_path / "dreams", starts, str)
    assert not (tmp_path / "dreams").exists()
    assert imagine(model, SETTINGS, tmp_path / "dreams", starts, str).recorded == 3


def test_killed_and_continued_it_is_the_same_dataset(model, whole, tmp_path):
    save_checkpoint(tmp_path / "tiny", model.tokenizer, model.text, model.model, WORLD, {})
    code = "import sys; from emu_embodied.commands import main; from emu_embodied.rollouts.collection import imagined as m; "
    code += "m.EPISODES_PER_SHARD = 2; sys.exit(main(sys.argv[1:]))"
    words = ["imagine", f"checkpoint={tmp_path / 'tiny'}", "episodes=10", "steps=5", f"starts={whole}"]
    command = [sys.executable, "-c", code, *words, f"out={tmp_path / 'dreams'}"]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    killed.stdout.readline()  # a part is finished
    killed.kill()
    killed.wait()
    assert not (tmp_path / "dreams").exists() and any((tmp_path / "dreams.parts").glob("part-00000"))
    assert main([*words, f"out={tmp_path / 'dreams'}"]) == 0 and main([*words, f"out={tmp_path / 'other'}"]) == 0
    files = [path.relative_to(tmp_path / "other") for path in (tmp_path / "other").rglob("*") if path.is_file()]
    assert len(files) == 6 and all(
        (tmp_path / "dreams" / path).read_bytes() == (tmp_path / "other" / path).read_bytes() for path in files
    )


def test_what_does_not_fit_is_refused(model, starts, tmp_path):
    for changes, field in (({"episodes": 0}, "episodes"), ({"steps": 0}, "steps"), ({"policy": "best"}, "policy")):
        with pytest.raises(DatasetError, match=field):
            replace(SETTINGS, **changes)
    other = tiny_world_model()
    other.world = replace(WORLD, env_id="")
    with pytest.raises(DatasetError, match="policy: scripted-noise; it knows the table-top only"):
        imagine(other, replace(SETTINGS, policy="scripted-noise"), tmp_path / "a", starts, str)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("")
    with pytest.raises(DatasetError, match="something else is there"):
        imagine(model, SETTINGS, tmp_path / "b", starts, str)


def test_the_command_dreams_from_real_resets(model, tmp_path, capsys):
    save_checkpoint(tmp_path / "tiny", model.tokenizer, model.text, model.model, WORLD, {})
    words = ["imagine", f"checkpoint={tmp_path / 'tiny'}", "episodes=3", "steps=4", "policy=scripted-noise", "seed=7"]
    assert main([*words, f"out={tmp_path / 'dreams'}"]) == 0
    assert "3 dreams, 15 frames" in capsys.readouterr().out
    assert main([*words, f"out={tmp_path / 'dreams'}"]) == 0 and "complete already" in capsys.readouterr().out
    cache = build_frame_cache(tmp_path / "dreams")
    assert cache.fps == 4 and all(text for text in cache.instructions) and cache.actions.any()
    dreams = [f"starts={tmp_path / 'dreams'}", "episodes=1", "policy=random", f"out={tmp_path / 'again'}"]
    assert main([*words, *dreams]) == 0  # dreams of dreams
    assert build_frame_cache(tmp_path / "again").instructions[0] in cache.instructions


def test_lerobots_act_trains_on_dreams(whole, tmp_path, monkeypatch):
    act = pytest.importorskip("lerobot.policies.act.modeling_act")
    import datasets
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.act.configuration_act import ACTConfig

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    chunk = 4
    dataset = LeRobotDataset("dreams", root=whole, delta_timestamps={ACTION: [t / 5 for t in range(chunk)]})
    config = ACTConfig(
        input_features={
            OBS_IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            OBS_STATE: PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (2,))},
        chunk_size=chunk,
        n_action_steps=chunk,
        pretrained_backbone_weights=None,
        device="cpu",
        **{"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1},
    )
    torch.manual_seed(0)
    policy = act.ACTPolicy(config)
    optimiser = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)))
    losses = []
    for _ in range(8):
        loss, _ = policy.forward(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert batch["action_is_pad"].any() and policy.select_action(
        {k: batch[k] for k in (OBS_IMAGE, OBS_STATE)}
    ).shape == (8, 2)
