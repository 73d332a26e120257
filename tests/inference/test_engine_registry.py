"""Engines by name: parity is measured and can fail, `auto` says what it took, nothing runs under another's name."""

import pytest
import torch
from tiny import tiny_world_model
from tiny_token_model import tiny_model

from emu_embodied.commands.compile import advice
from emu_embodied.errors import EngineError, InputError
from emu_embodied.inference.engines import registry
from emu_embodied.inference.engines.parity import measure_parity
from emu_embodied.inference.engines.registry import ENGINES, checked_engine, fastest_engine, make_engine
from emu_embodied.inference.engines.static import StaticEngine
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.loading import load


@pytest.mark.parametrize("context, source, shift", [(0, True, False), (2, True, True), (1, False, True)])
def test_the_static_engine_has_parity(context, source, shift):
    model = tiny_model(context_frames=context, previous_frame_source=source, next_token_shift=shift)
    parity = measure_parity(StaticEngine(model), model)
    assert parity.holds and parity.exact and parity.drawn == 2 * 9 * 6


def test_parity_tells_another_model_and_a_rounded_one():
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        other.noised.add_(0.05)
    assert not measure_parity(StaticEngine(other), model).holds
    half = measure_parity(StaticEngine(tiny_model().bfloat16()), model)
    assert not half.exact and half.cosine < 0.999999 and half.equal_clear > 0.9


def test_an_engine_without_parity_is_replaced_and_does_not_keep_its_name(monkeypatch, caplog):
    model, wrong = tiny_model(), tiny_model()
    with torch.no_grad():
        wrong.noised.add_(1.0)
    monkeypatch.setattr(registry, "make_engine", lambda name, model, **options: StaticEngine(wrong, name=name))
    engine = checked_engine("onnx", model)
    assert engine.name == "eager" and isinstance(engine, FrameStep)
    assert "running eager" in caplog.text
    trial, none = registry.try_engine("onnx", model, 2)
    assert none is None and trial.ms is None and "agree" in trial.fault


def test_auto_takes_one_that_agrees_and_says_which(tmp_path):
    model = tiny_model(context_frames=0)
    engine, trials = fastest_engine(model, 2, cache=tmp_path)
    assert [trial.name for trial in trials] == ["eager", "onnx"]
    assert engine.name == min((t for t in trials if t.ms), key=lambda t: t.ms).name


@pytest.mark.parametrize("options, field", [({"engine": "fast"}, "engine"), ({"precision": "fp8"}, "precision")])
def test_unknown_engines_and_precisions_are_refused(options, field):
    with pytest.raises(InputError, match=field):
        load("nano-tabletop", **{"engine": "onnx", **options})


def test_half_precision_is_refused_where_there_is_none():
    with pytest.raises(InputError, match="precision: bf16"):
        make_engine("onnx", tiny_model(), precision="bf16")
    with pytest.raises(InputError, match="precision: fp16"):
        make_engine("eager", tiny_model(), precision="fp16")


def test_the_eager_steps_compute_in_half_precision_and_the_heads_do_not():
    model = load("nano-tabletop", precision="bf16")
    history = model.encode([_observation()])
    dreamt = model.rollout(history, torch.zeros(1, 2, 2, 2))
    assert model.engine.model.noised.dtype == torch.bfloat16 and model.model.noised.dtype == torch.float32
    assert dreamt.positions_BSTOD.dtype == torch.float32
    reference = load("nano-tabletop").rollout(history, torch.zeros(1, 2, 2, 2))
    assert (dreamt.codes_BSTN == reference.codes_BSTN).float().mean() > 0.8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_without_a_gpu_is_one_sentence():
    assert {"tensorrt", "tensorrt_rtx"} <= set(ENGINES)
    with pytest.raises(EngineError, match="tensorrt"):
        load("nano-tabletop", engine="tensorrt")


def test_a_world_model_dreams_the_same_on_the_static_engine():
    eager, static = (tiny_world_model(context=2, passes=2) for _ in range(2))
    static.engine = StaticEngine(static.model)
    history = eager.encode([_observation()])
    actions = torch.rand(1, 3, 5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours, theirs = eager.rollout(history, actions), static.rollout(history, actions)
    assert ours.codes_BSTN.equal(theirs.codes_BSTN)
    torch.testing.assert_close(ours.positions_BSTOD, theirs.positions_BSTOD, atol=1e-3, rtol=1e-3)


def _observation():
    import numpy as np

    from emu_embodied.types import Observation

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Observation(pixels, np.zeros(2, np.float32), "push the red cube to the left")


def test_the_advice_follows_from_what_was_measured():
    faster, slower = (1.0, 2.0), (2.0, 1.0)
    assert "use it with  engine=onnx" in advice("onnx", {1: faster, 16: faster})
    assert "engine=eager" in advice("onnx", {1: slower, 16: (1.0, 1.0)}) and "use it" not in advice("onnx", {1: slower})
    mixed = advice("onnx", {1: faster, 4: faster, 16: slower})
    assert "for 1, 4 dreams at once" in mixed and "for 16 the eager one is" in mixed
