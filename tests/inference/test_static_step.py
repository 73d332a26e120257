"""The static engine does what the eager one does, frame after frame, around its ring, whichever way frames are decoded."""

import pytest
import torch
from tiny_engines import WAYS, dream
from tiny_token_model import RELEASED, batch, tiny_model

from emu_embodied.errors import InputError
from emu_embodied.inference.engines.static import StaticEngine
from emu_embodied.inference.frame_step import FrameStep


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "wiring",
    [
        {"context_frames": 2},
        {"context_frames": 0},
        {"context_frames": 2, "previous_frame_source": False, "next_token_shift": True},
        {"context_frames": 1, "next_token_shift": True},
        {"context_frames": 2, "next_token_shift": True, **RELEASED},
        {"context_frames": 1, **RELEASED},
    ],
)
def test_it_agrees_with_the_eager_engine(way, wiring):
    model = tiny_model(**wiring)
    codes, hidden = dream(StaticEngine(model), model, way, frames=6, copies=3)
    wanted_codes, wanted_hidden = dream(FrameStep(model), model, way, frames=6, copies=3)
    assert codes.equal(wanted_codes)
    torch.testing.assert_close(hidden, wanted_hidden, atol=1e-4, rtol=1e-4)


def test_buffers_stay_as_large_as_they_were_and_take_any_number_of_frames():
    model = tiny_model(context_frames=2)
    text, codes, actions, *_ = batch(model)
    engine = StaticEngine(model)
    with torch.no_grad():
        cache = engine.prefill(text, codes[:, :2], actions[:, :1], ahead=1)
        place = cache.keys.data_ptr(), cache.keys.shape
        for _ in range(21):
            engine.commit(cache, actions[:, 1], codes[:, 2])
    assert (cache.keys.data_ptr(), cache.keys.shape) == place and cache.frames == 22
    assert cache.seen_S.sum() == model.config.text_length + 2 * model.config.frame_tokens


def test_more_frames_than_the_ring_holds_are_refused():
    model = tiny_model(context_frames=1)
    text, codes, actions, *_ = batch(model)
    with pytest.raises(InputError, match="frames: 4"):
        StaticEngine(model).prefill(text, codes, actions, ahead=1)
