"""The three noise processes: levels mean the same, refinement ends where it should, nothing outside the codebook."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_token_model import batch, tiny_model

from emu_embodied.inference.decoding import dida, exact
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.model.noise import NOISES, Metric, make_noise

PLACES = torch.cartesian_prod(*[torch.arange(4.0)] * 3)


def error(noise, codes, noisy, hidden) -> float:
    return float((hidden | (noisy != codes)).float().mean())


@given(st.sampled_from(NOISES), st.floats(0.0, 0.95), st.integers(0, 99))
@settings(max_examples=60)
def test_a_level_is_the_share_of_tokens_that_are_wrong(name, level, seed):
    noise, generator = make_noise(name, PLACES), torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 64, (200, 32), generator=generator)
    noisy, hidden = noise.corrupt(codes, torch.full((200, 1), level), generator)
    assert noisy.min() >= 0 and noisy.max() < 64 and noisy.dtype == torch.int64
    assert abs(error(noise, codes, noisy, hidden) - level) < 0.035
    counted = noise.counts(hidden)
    assert counted.equal(hidden if name == "absorbing" else torch.ones_like(hidden))


@pytest.mark.parametrize("name", ["uniform", "metric"])
def test_refinement_lands_on_its_level(name):
    noise, generator = make_noise(name, PLACES), torch.Generator().manual_seed(0)
    codes = torch.randint(0, 64, (400, 32), generator=generator)
    noisy, hidden = noise.corrupt(codes, torch.full((400, 1), 0.8), generator)
    for before, after in ((0.8, 0.5), (0.5, 0.2), (0.2, 0.0)):
        noisy = noise.refine(noisy, codes, before, after, generator)
        assert abs(error(noise, codes, noisy, hidden) - after) < 0.02


def test_metric_noise_prefers_near_codes():
    noise, generator = Metric(PLACES), torch.Generator().manual_seed(0)
    codes = torch.randint(0, 64, (400, 32), generator=generator)
    distances = []
    for level in (0.2, 0.5, 0.9):
        noisy, _ = noise.corrupt(codes, torch.full((400, 1), level), generator)
        wrong = noisy != codes
        distances.append(float((PLACES[noisy] - PLACES[codes]).square().sum(-1)[wrong].mean()))
    assert 1 <= distances[0] < distances[1] < distances[2]
    survivors = [float(noise.kernel(beta).diagonal().mean()) for beta in noise.betas]
    assert survivors == sorted(survivors) and survivors[0] < 0.02 and survivors[-1] > 0.999


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("passes", [1, 3, 9])
def test_every_process_decodes_frames_of_real_codes(name, passes):
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(4.0))
    model, noise = tiny_model(), make_noise(name, places)
    text, codes, actions, *_ = batch(model)
    step, config = FrameStep(model), DecodingConfig(passes=passes, temperature=1.0)
    drawn = []
    with torch.no_grad():
        for seed in (0, 0, 1):
            cache = step.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
            generator = torch.Generator().manual_seed(seed)
            drawn.append(dida.decode_frame(step, cache, actions[:, 1], config, generator, noise)[0])
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2])
    assert all(((d >= 0) & (d < 32)).all() for d in drawn)


@pytest.mark.parametrize("name", NOISES)
def test_exact_decoding_does_not_depend_on_the_draft(name):
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(4.0))
    model = tiny_model()
    text, codes, actions, *_ = batch(model)
    step = FrameStep(model)
    with torch.no_grad():
        drawn = [
            exact.decode_frame(step, step.prefill(text, codes[:, :2], actions[:, :1], ahead=1), actions[:, 1], None, g, n)[0]
            for g, n in ((torch.Generator().manual_seed(0), make_noise(name, places)), (None, None))
        ]
    assert drawn[0].equal(drawn[1])
