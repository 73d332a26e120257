"""The compiled engine dreams what the eager one dreams: step by step here, as captured graphs where there is a GPU."""

import shutil

import pytest
import torch
from tiny_engines import dream
from tiny_token_model import batch, tiny_model

from emu_embodied.inference.decoding import autoregressive, dida
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.engines.compiled import CompiledEngine, PerBatch
from emu_embodied.inference.engines.parity import measure_parity
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.inference.static_step import STEPS

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are captured on a CUDA device, and there is none")


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_compiled_steps_dream_the_same_frames():
    model = tiny_model(context_frames=1, previous_frame_source=True)
    engine = CompiledEngine(model)
    assert engine.whole_frame(dida.decode_frame) is dida.decode_frame  # on the CPU there is no graph to capture
    codes, states = dream(engine, model, "dida", frames=3, copies=1)
    wanted, wanted_states = dream(FrameStep(model), model, "dida", frames=3, copies=1)
    assert codes.equal(wanted)
    torch.testing.assert_close(states, wanted_states, atol=1e-4, rtol=1e-4)


def frames_on_gpu(engine, model, config, seeds=(0, 1), count=5):
    """Frames of two dreams that take turns on one engine, so that a graph's buffers change hands; (dream, frame, B, N)."""
    text, codes, actions, *_ = (x.cuda() for x in batch(model))
    method = {"dida": dida, "autoregressive": autoregressive}[config.decoding]
    decode, generator = engine.whole_frame(method.decode_frame), torch.Generator("cuda")
    generator.manual_seed(5)
    ahead = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(3)).cuda() * 2 - 1
    with torch.inference_mode():
        caches = [engine.prefill(text.roll(seed, 0), codes[:, :2], actions[:, :1], ahead=count) for seed in seeds]
        rows = [[decode(engine, cache, action, config, generator, None)[0] for cache in caches] for action in ahead]
    return torch.stack([torch.stack(row) for row in rows]).cpu()


@GPU
@pytest.mark.parametrize("config", [DecodingConfig(passes=2), DecodingConfig("autoregressive"), DecodingConfig(passes=1)])
@pytest.mark.parametrize("context", [0, 2])
def test_captured_frames_are_the_eager_ones_whoever_owns_the_buffers(config, context):
    model = tiny_model(context_frames=context).cuda()
    wanted = frames_on_gpu(FrameStep(model), model, config)
    assert frames_on_gpu(CompiledEngine(model), model, config).equal(wanted)


@GPU
def test_captured_sampling_follows_the_seed_and_goes_on_drawing():
    model, config = tiny_model().cuda(), DecodingConfig(passes=2, temperature=1.0)
    engine = CompiledEngine(model)
    first, again = (frames_on_gpu(engine, model, config, seeds=(0,)) for _ in range(2))
    assert first.equal(again) and not first[0].equal(first[1])


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_parity_on_the_gpu(dtype):
    model = tiny_model(context_frames=2).cuda()
    assert measure_parity(CompiledEngine(tiny_model(context_frames=2).cuda().to(dtype)), model).holds


def test_any_number_of_batch_sizes_and_models_is_compiled():
    for _ in range(2):  # models have one code between them
        model = tiny_model(context_frames=1)
        engine = CompiledEngine(model)
        engine.run = {name: PerBatch(getattr(engine.step, name), backend="eager") for name in STEPS}
        text, codes, actions, *_ = batch(model)
        for size in range(1, 11):
            rows = torch.arange(size) % len(text)
            with torch.inference_mode():
                caches = [
                    each.prefill(text[rows], codes[rows, :1], actions[rows, :0], ahead=1)
                    for each in (engine, FrameStep(model))
                ]
                made, wanted = (
                    dida.decode_frame(each, cache, actions[rows, 0])[0]
                    for each, cache in zip((engine, FrameStep(model)), caches, strict=True)
                )
            assert made.equal(wanted)
