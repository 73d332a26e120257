"""Guidance: the formula, on every way to decode; scale 1 is none; an empty instruction is what the unconditional half reads."""

import pytest
import torch
from tiny import tiny_world_model
from tiny_token_model import batch, tiny_model

from emu_embodied.errors import InputError
from emu_embodied.inference.decoding import autoregressive, dida, exact
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.decoding.guidance import GuidedEngine
from emu_embodied.inference.frame_step import FrameStep

EMPTY = torch.full((4,), 19)


def frames(engine, decode, config, model, count: int = 3):
    text, codes, actions, *_ = batch(model)
    with torch.no_grad():
        cache = engine.prefill(text, codes[:, :2], actions[:, :1], ahead=count).expand(2)
        wide = actions[:, 1].repeat_interleave(2, 0)
        return torch.stack([decode(engine, cache, wide, config)[0] for _ in range(count)])


@pytest.mark.parametrize("decode, config", [(dida, DecodingConfig(passes=2)), (exact, DecodingConfig("exact"))])
def test_scale_one_changes_nothing(decode, config):
    model = tiny_model()
    engine = FrameStep(model)
    guided = frames(GuidedEngine(engine, 1.0, EMPTY), decode.decode_frame, config, model)
    assert guided.equal(frames(engine, decode.decode_frame, config, model))


def test_exact_decoding_is_token_by_token_under_guidance_too_and_the_instruction_matters_more():
    model = tiny_model()
    engine = GuidedEngine(FrameStep(model), 4.0, EMPTY)
    drafted = frames(engine, exact.decode_frame, DecodingConfig("exact"), model)
    assert drafted.equal(frames(engine, autoregressive.decode_frame, DecodingConfig("autoregressive"), model))
    assert not drafted.equal(frames(engine.engine, exact.decode_frame, DecodingConfig("exact"), model))


def test_guided_logits_follow_the_formula():
    model = tiny_model()
    text, codes, actions, noisy, hidden = batch(model)
    plain, engine = FrameStep(model), GuidedEngine(FrameStep(model), 2.5, EMPTY)
    with torch.no_grad():
        job = (actions[:, 1], noisy[:, 1], hidden[:, 1])
        c, u = (
            plain.denoise(plain.prefill(t, codes[:, :2], actions[:, :1], 1), *job).logits.log_softmax(-1)
            for t in (text, EMPTY.expand(2, 4))
        )
        found = engine.denoise(engine.prefill(text, codes[:, :2], actions[:, :1], 1), *job)
    torch.testing.assert_close(found.logits, u + 2.5 * (c - u))
    assert found.codes.equal(found.logits.argmax(-1))


def test_a_world_model_takes_the_option():
    model = tiny_world_model(guidance=3.0, passes=2)
    assert isinstance(model.engine, GuidedEngine) and (model.engine.empty_L == model.model.config.vocabulary.pad).all()
    with pytest.raises(InputError, match="guidance"):
        DecodingConfig(guidance=float("nan"))
