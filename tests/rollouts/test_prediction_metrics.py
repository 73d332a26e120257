"""Metrics of long dreams on models whose quality is known, probes on frames that are easy to read, and policy ranking."""

from __future__ import annotations

import json
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from known_quality import WORLD, Replayer, held_out
from safetensors.torch import load_file, save_file
from scipy import linalg, stats
from tiny import tiny_world_model

from emu_embodied.baselines.probes import InverseDynamics, ProbeConfig, Probes, load_probes, save_probes
from emu_embodied.errors import CheckpointError, ConfigError, DatasetError, InputError
from emu_embodied.metrics import correlation, frechet_distance, moving_psnr, psnr, rank_correlation, rank_violation
from emu_embodied.rollouts.evaluation import prediction
from emu_embodied.rollouts.evaluation import prediction_metrics as metrics
from emu_embodied.rollouts.evaluation.fvd import VideoReader, video_distance_row
from emu_embodied.rollouts.evaluation.tables import as_markdown
from emu_embodied.training.folder import TrainingRun
from emu_embodied.training.loop import LoopConfig
from emu_embodied.training.stages.probes import train_probes

rates = arrays.arrays(np.float64, st.integers(2, 9), elements=st.floats(0, 1).map(lambda x: round(x, 3)))


def test_psnr_is_of_each_pair_and_moving_psnr_of_what_moves():
    rng = np.random.default_rng(0)
    context = rng.integers(0, 200, (3, 8, 8, 3)).astype(np.uint8)
    wanted, guess = context.copy(), context.copy()
    wanted[0, 2:4, 2:4] += 50  # moved, and nobody foresaw it
    guess[1, 0] += 20  # foreseen, and it did not come
    assert psnr(guess, wanted)[2] == 99
    assert psnr(guess, wanted)[0] == pytest.approx(10 * np.log10(255**2 / (2500 * 4 / 64)))
    moving = moving_psnr(guess, wanted, context)
    assert moving[:2] == pytest.approx(10 * np.log10(255**2 / np.array([2500, 400]))) and np.isnan(moving[2])


def test_the_frechet_distance_is_the_textbooks():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(400, 5)), 1 + rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    c, d = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    wanted = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real)
    assert frechet_distance(one, other) == pytest.approx(wanted) and frechet_distance(one, one) == pytest.approx(
        0, abs=1e-6
    )


@settings(max_examples=60)
@given(rates, st.integers(0, 2**31))
def test_ranks_are_compared_as_defined(real, seed):
    simulated = np.random.default_rng(seed).permutation(real)
    n, worst = len(real), []
    for i in range(n):
        wrong = [abs(real[i] - real[j]) for j in range(n) if (real[i] < real[j]) != (simulated[i] < simulated[j])]
        worst.append(max(wrong, default=0.0))
    assert rank_violation(real, simulated) == pytest.approx(np.mean(worst))
    assert rank_violation(real, real**3) == 0, "an order that is kept violates nothing"
    if np.ptp(real) > 0:
        assert rank_correlation(real, simulated) == pytest.approx(stats.spearmanr(real, simulated)[0])
        assert rank_correlation(real, np.exp(real)) == pytest.approx(1) and correlation(
            real, 3 * real
        ) == pytest.approx(1)
    else:
        assert np.isnan(correlation(real, simulated))


class Follower(Replayer):
    """`Replayer` with what long dreams are judged by: its tokenizer's round trip is perfect."""

    objects, text, model, agent_dim = tuple(WORLD.objects), None, None, 2

    def __init__(self, truth, lag: int) -> None:
        super().__init__(truth, lag)
        ids = {frame.tobytes(): i for i, frame in reversed(list(enumerate(self.frames)))}
        encode = lambda frames: torch.tensor([[ids[f.tobytes()]] for f in frames.numpy()])  # noqa: E731
        parameter = torch.nn.Parameter(torch.zeros(1))
        self.tokenizer = SimpleNamespace(encode=encode, parameters=lambda: iter([parameter]))


@pytest.mark.parametrize(("lag", "horizon"), [(0, 8), (2, 8), (5, 8)])
def test_a_model_that_lags_is_found_out(lag, horizon, monkeypatch):
    monkeypatch.setattr(metrics, "token_rows", lambda *_: [])
    truth = prediction.Truth(held_out(), WORLD)
    rows = {
        (row.metric, row.step): row for row in metrics.rollout_table(Follower(truth, lag), truth, horizons=(1, 8, 32))
    }
    assert {step for _, step in rows} == {0, 1, 4, 8}, "what the episodes are too short for is left out"
    place = rows["moved objects, median px", 8]
    assert place.model == pytest.approx(lag, abs=0.1) and place.copy_last == pytest.approx(8, abs=0.01)
    assert place.round_trip == pytest.approx(0, abs=0.1) and place.n == truth.episodes
    moving = rows["PSNR of what moves, dB", 8]
    assert moving.round_trip == 99 and (moving.model == 99) == (lag == 0) and moving.model > moving.copy_last
    assert rows["SSIM", 8].round_trip == pytest.approx(1) and rows["PSNR, dB", 1].n == truth.episodes
    assert rows["valid horizon, steps of 8", 0].model == (horizon if lag < metrics.VALID_PX else 0)
    assert rows["windows with an object missing or invented, %", 8].model == 0
    assert rows["dPSNR, dB", 4].model == 0, "it follows no actions"
    lines = as_markdown(list(rows.values())).splitlines()
    assert len(lines) == len(rows) + 2 and all(line.count("|") == 8 for line in lines)


def test_action_agreement_is_one_where_dreams_are_real_and_is_of_all_steps_too():
    truth, config = prediction.Truth(held_out(), WORLD), ProbeConfig(64, (), 2, width=4, points=4)
    torch.manual_seed(0)
    probes = Probes(config, InverseDynamics(config), None, {})
    for lag in (0, 2):
        rollouts = metrics.Rollouts(Follower(truth, lag), truth, (1, 4))
        one, four, whole = metrics.agreement_rows(rollouts, probes)
        assert (one.step, four.step, whole.step) == (1, 4, 0) and whole.n == truth.episodes
        for row in (one, four, whole):
            assert row.round_trip == pytest.approx(1) and (lag or row.model == pytest.approx(1))
    dreamt, real = (
        np.abs(probes.actions(np.concatenate([rollouts.context[:, None], f[:, :-1]], 1), f) - rollouts.actions).mean()
        for f in (rollouts.frames["model"], rollouts.real)
    )
    assert whole.model == pytest.approx(dreamt / real)


def test_a_real_token_model_gets_every_row(tmp_path):
    truth, model = prediction.Truth(held_out(), WORLD), tiny_world_model()
    config = ProbeConfig(64, tuple(WORLD.objects), 2, width=4, points=4)
    torch.manual_seed(0)
    from emu_embodied.baselines.probes import StateProbe

    rows = metrics.rollout_table(model, truth, Probes(config, InverseDynamics(config), StateProbe(config), {}), (1, 4))
    names = {row.metric for row in rows}
    wanted = ("probe-FD", "action error over that on real frames", "cross-entropy, one pass, nats", "dPSNR, dB")
    assert names.issuperset(wanted)
    for row in rows:
        assert row.model is None or np.isfinite(row.model)
    nats = next(row for row in rows if row.metric == "cross-entropy, token by token, nats")
    assert nats.model > 0 and nats.n == truth.episodes * 8 * 16


def test_lpips_says_which_weights_are_missing_and_is_measured_where_they_are(monkeypatch):
    truth, model = prediction.Truth(held_out(), WORLD), tiny_world_model()

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models.alexnet", offline)
    with pytest.raises(ConfigError, match="alexnet-owt-7be5be79.pth"):
        metrics.rollout_table(model, truth, horizons=(1,), lpips=True)
    monkeypatch.undo()
    alexnet = torchvision.models.alexnet
    monkeypatch.setattr("torchvision.models.alexnet", lambda weights: alexnet(weights=None))
    torch.manual_seed(0)
    monkeypatch.setattr(metrics, "token_rows", lambda *_: [])
    rows = metrics.rollout_table(Follower(truth, 2), truth, horizons=(4,), lpips=True)
    found = next(row for row in rows if row.metric == "LPIPS")
    assert found.round_trip == pytest.approx(0, abs=1e-5) and found.model > 0 and found.n == truth.episodes


def tiny_videomae(folder):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "num_frames": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.VideoMAEConfig(**sizes, intermediate_size=16, patch_size=16)
    transformers.VideoMAEModel(config).save_pretrained(folder)
    return folder


def test_the_video_distance_is_of_a_videomaes_features(tmp_path):
    reader = VideoReader(str(tiny_videomae(tmp_path)))
    truth = prediction.Truth(held_out(), WORLD)
    rollouts = metrics.Rollouts(Follower(truth, 2), truth, (4,))
    row = video_distance_row(rollouts, reader)
    assert row.step == 4 and row.n == truth.episodes
    assert row.round_trip == pytest.approx(0, abs=1e-4) and row.copy_last > row.model > 0
    clips = rollouts.real[:, :4]
    backwards = reader.features(clips[:, ::-1])
    assert np.abs(backwards - reader.features(clips)).max() > 1e-4, "the order of the frames counts"
    assert reader.features(clips[:1]) == pytest.approx(reader.features(clips)[:1], abs=1e-5)
    with pytest.raises(ConfigError, match="clips of 4 frames, dreams have 2"):
        video_distance_row(metrics.Rollouts(Follower(truth, 2), truth, (2,)), reader)


def test_who_asks_for_a_video_distance_is_told_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="model.safetensors"):
        VideoReader(str(tmp_path / "nowhere"))
    folder = tiny_videomae(tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in weights.items() if "query" not in name}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="weights are missing, encoder.layer.0.attention"):
        VideoReader(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="model.safetensors"):
        VideoReader(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigError, match="^fvd: [^;]*; it is a vit: "):
        VideoReader(str(folder))


# Probes


def moving_squares(episodes: int = 30, length: int = 12):
    """Episodes of 32 px in which the action moves a red square, by up to 6 of 64 px."""
    from dataclasses import replace

    base, rng = held_out(episodes, length), np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (len(base.pixels), 2)).astype(np.float32)
    pixels, states = np.full_like(base.pixels, 222), np.zeros_like(base.states).reshape(len(base.pixels), -1, 4)
    for f in range(len(pixels)):
        place = rng.uniform(16, 48, 2) if f % length == 0 else np.clip(place + 6 * actions[f - 1], 6, 58)  # noqa: F821
        if f % length:
            actions[f - 1] = (place - before) / 6  # noqa: F821
        before = place  # noqa: F841
        (x, y), spot = place.round().astype(int), ((place.round() - 32) / 32 * WORLD.position_scale)
        pixels[f, y - 4 : y + 4, x - 4 : x + 4] = WORLD.objects["red"]
        states[f, 1] = (*spot, 0, 1)
    return replace(base, pixels=pixels[:, ::2, ::2].copy(), actions=actions, states=states.reshape(len(pixels), -1))


def test_probes_learn_to_read_frames_and_are_kept(tmp_path):
    cache, said = moving_squares(), []
    loop = LoopConfig(200, 6e-3, warmup=10, average=0.9, log_every=100, save_every=100)
    run = TrainingRun(tmp_path, report=said.append)
    path = train_probes(cache, ("red",), WORLD.position_scale, loop, run, batch=32, held_out=5)
    probes = load_probes(path)
    assert probes.floors["state_px"] < 2 and probes.floors["presence_wrong"] == 0  # guessing the middle: about 12
    assert probes.floors["action"] < 0.35  # guessing zero: 0.45
    places, present = probes.objects(cache.pixels[:3])
    assert places.shape == (3, 1, 2) and present.all() and probes.features(cache.pixels[:3]).shape == (3, 256)
    with pytest.raises(InputError, match="32 x 32"):
        probes.objects(np.zeros((1, 64, 64, 3), np.uint8))
    config = json.loads((path / "config.json").read_text())
    assert config["training"]["held_out"] == 5 and config["floors"] == probes.floors
    with pytest.raises(DatasetError, match="held out"):
        train_probes(cache, ("red",), WORLD.position_scale, loop, run, held_out=30)


def test_damaged_probes_are_refused(tmp_path):
    config = ProbeConfig(16, (), 2, width=4, points=4)
    save_probes(tmp_path / "probes", Probes(config, InverseDynamics(config), None, {"action": 1.0}), {})
    assert load_probes(tmp_path / "probes").state is None
    (tmp_path / "probes" / "inverse_dynamics.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        load_probes(tmp_path / "probes")
    with pytest.raises(CheckpointError):
        load_probes(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("field", "value"),
    [("patch_size", 0), ("num_hidden_layers", 10**5), ("hidden_size", "x"), ("num_frames", 10**9), ("image_size", None)]
    + [("hidden_act", "os.system"), ("layer_norm_eps", "x")],
)
def test_a_video_network_of_impossible_sizes_is_refused_by_name(tmp_path, field, value):
    path = tiny_videomae(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError, match=field):
        VideoReader(str(tmp_path))


def test_nothing_else_of_a_video_networks_file_reaches_transformers(tmp_path):
    path = tiny_videomae(tmp_path) / "config.json"
    odd = {"_attn_implementation": "kernels-community/flash-attn", "dtype": "nosuch"}
    path.write_text(json.dumps(json.loads(path.read_text()) | odd | {"quantization_config": 5, "id2label": 5}))
    assert VideoReader(str(tmp_path)).length == 4
