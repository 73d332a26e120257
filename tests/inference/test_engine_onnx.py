"""ONNX Runtime as an independent executor of the exported steps: the same tokens, the same log-probabilities, whole frames."""

import hashlib
import sys
from dataclasses import replace

import pytest
import torch
from tiny_engines import WAYS, arguments, dream
from tiny_token_model import SIZES, tiny_model

from emu_embodied.errors import ConfigError, EngineError, InputError
from emu_embodied.inference.engines import onnx
from emu_embodied.inference.engines.export import Exporter
from emu_embodied.inference.engines.static import StaticEngine
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.inference.static_step import STEPS, StaticStep

# Exports take seconds: one model has them all, the plainest Emu3.5 those that differ.
MODELS = {
    "source, context": (dict(context_frames=2), STEPS),
    "plain, shifted, no context": (
        dict(
            previous_frame_source=False,
            next_token_shift=True,
            context_frames=0,
            transformer=replace(SIZES, num_hidden_layers=1),
        ),
        ("denoise", "first_token", "next_token"),
    ),
}
CASES = [(name, step) for name, (_, steps) in MODELS.items() for step in steps]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """The model and its executors, by name."""
    folder = tmp_path_factory.mktemp("engines")
    models = {name: tiny_model(**changes) for name, (changes, _) in MODELS.items()}
    return {name: (model, onnx.executors(model, cache=folder)) for name, model in models.items()}




@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name, step", CASES)
def test_a_step_gives_what_it_gives_in_torch(engines, name, step, batch):
    model, executors = engines[name]
    executor = executors[step]
    given = arguments(executor, batch)
    with torch.no_grad():
        wanted = getattr(StaticStep(model), step)(*given)
    results = executor(*given)
    assert len(results) == len(wanted) == len(executor.results)
    for port, result, expected in zip(executor.results, results, wanted, strict=True):
        assert result.dtype == expected.dtype and result.shape == expected.shape, port.name
        if port.dtype == torch.int64:
            assert result.equal(expected), port.name
        else:
            torch.testing.assert_close(
                result, expected, atol=1e-4, rtol=0, msg=lambda text, p=port: f"{p.name}: {text}"
            )


@pytest.mark.parametrize(
    "way, name",
    [(way, "source, context") for way in WAYS]
    + [(way, "plain, shifted, no context") for way in ("dida", "autoregressive")],
)
def test_whole_frames_are_those_of_the_eager_engine(engines, name, way):
    model, executors = engines[name]
    codes, hidden = dream(StaticEngine(model, run=executors, name="onnx"), model, way, frames=4, copies=3)
    wanted_codes, wanted_hidden = dream(FrameStep(model), model, way, frames=4, copies=3)
    assert codes.equal(wanted_codes)
    torch.testing.assert_close(hidden, wanted_hidden, atol=1e-4, rtol=0)


def test_a_model_gives_the_same_bytes_again_and_they_name_no_path(engines):
    model, executors = engines["plain, shifted, no context"]
    first, again = executors["next_token"].build(), Exporter(model).export("next_token")
    assert hashlib.sha256(first).digest() == hashlib.sha256(again).digest()
    assert b".py" not in first


def test_the_key_follows_the_model_and_an_engine_is_exported_once(engines, monkeypatch):
    model, executors = engines["source, context"]
    place = executors["denoise"].cache
    kept = executors["denoise"].build()
    monkeypatch.setattr(Exporter, "export", lambda *_: pytest.fail("exported again"))
    same = onnx.executors(model, cache=place)["denoise"]
    assert same.build() == kept
    other = tiny_model(context_frames=2)
    with torch.no_grad():
        other.noised[0] += 1e-6
    keys = [onnx.executors(m, cache=place)["denoise"].key for m in (model, other, tiny_model(context_frames=1))]
    assert len({key.weights for key in keys[:2]}) == 2 and len({key.config for key in keys}) == 2
    assert len({key.digest for key in keys}) == 3


@pytest.mark.parametrize("damage", ["garbage", "empty", "swapped", "another model's"])
def test_an_entry_of_right_sums_that_is_no_such_step_is_built_again(engines, tmp_path, caplog, monkeypatch, damage):
    model, executors = engines["plain, shifted, no context"]
    kept = {name: executors[name].build() for name in ("denoise", "next_token")}
    other = engines["source, context"][1]["denoise"].build()
    bytes_of = {"garbage": bytes(999), "empty": b"", "swapped": kept["next_token"], "another model's": other}
    executor = onnx.executors(model, cache=tmp_path)["denoise"]
    executor.cache.fetch(executor.key, lambda: bytes_of[damage])
    monkeypatch.setattr(Exporter, "export", lambda self, step: kept[step])  # that it would make is known
    given = arguments(executor, 2)
    assert all(map(torch.equal, executor(*given), executors["denoise"](*given)))
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "building the onnx engine of denoise again"
    ]
    caplog.clear()
    onnx.executors(model, cache=tmp_path)["denoise"].load()
    assert not caplog.records


def test_a_tensor_of_another_shape_is_refused(engines):
    _, executors = engines["source, context"]
    given = arguments(executors["denoise"], 2)
    given[5] = given[5][:1]
    with pytest.raises(InputError, match=r"actions_BA: \(1, 2\); denoise takes \(2, 2\)"):
        executors["denoise"](*given)


def test_threads_are_torchs(engines):
    executor = engines["source, context"][1]["next_token"]
    executor.load()
    assert executor.session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_what_cannot_run_says_what_to_install(monkeypatch, tmp_path):
    model = tiny_model()
    with pytest.raises(ConfigError, match="precision"):
        Exporter(model, precision="int3")
    with pytest.raises(EngineError, match="no MPSExecutionProvider.*onnxruntime-gpu"):
        onnx.check_provider(torch.device("mps"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r'onnxruntime: .*; run: pip install "emu-embodied\[onnx\]"'):
        onnx.executors(model, cache=tmp_path)
