"""TensorRT-RTX: a real parse and build from the exported step; running it where there is a GPU."""

import pytest
import torch
from tiny_engines import arguments
from tiny_token_model import tiny_model

from emu_embodied.errors import ConfigError, EngineError, InputError
from emu_embodied.inference.engines import tensorrt
from emu_embodied.inference.engines.cache import EngineCache
from emu_embodied.inference.engines.export import require
from emu_embodied.inference.static_step import StaticStep

GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def trt():
    try:
        return require("tensorrt_rtx_bindings")
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def denoise(trt, tmp_path_factory):
    """The executor of the denoise step, its engine built."""
    model = tiny_model().to("cuda" if GPU else "cpu")
    cache = EngineCache(tmp_path_factory.mktemp("engines"))
    executor = tensorrt.executors(model, flavour="tensorrt_rtx", profiles=(1, 8), cache=cache)["denoise"]
    executor.build()
    return executor


def test_an_engine_is_built_from_the_exported_step_and_kept(denoise, monkeypatch):
    kept = denoise.cache.path(denoise.key) / "denoise.tensorrt_rtx"
    monkeypatch.setattr(tensorrt, "build_engine", lambda *_: pytest.fail("built again"))
    assert len(denoise.build()) > 100_000 and denoise.build() == kept.read_bytes()
    assert denoise.key.flavour == "tensorrt_rtx" and denoise.key.profiles == (1, 8)
    assert (denoise.key.compute_capability == "none") == (not GPU)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_builds_in_its_own_types(trt, tmp_path, precision):
    model = tiny_model()
    executor = tensorrt.executors(model, flavour="tensorrt_rtx", precision=precision, profiles=(4,), cache=tmp_path)
    assert len(executor["next_token"].build()) > 100_000
    assert executor["next_token"].key.precision == precision and model.noised.dtype == torch.float32


def test_a_batch_beyond_the_profiles_is_refused(denoise):
    assert [denoise.profile(batch) for batch in (1, 2, 8)] == [0, 1, 1]
    with pytest.raises(InputError, match="batch: 9; this engine takes at most 8"):
        denoise.profile(9)


def test_what_tensorrt_refuses_it_says_itself(trt, denoise):
    with pytest.raises(EngineError, match="tensorrt_rtx_bindings .* does not take the graph: .*Failed to parse"):
        tensorrt.build_engine(trt, b"no graph", denoise.inputs, (1,))


@pytest.mark.parametrize(
    "option", [{"flavour": "tensorflow"}, {"precision": "int3"}, {"profiles": ()}, {"profiles": (16, 4)}]
)
def test_options_out_of_range_are_refused(trt, option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        tensorrt.executors(tiny_model(), **({"flavour": "tensorrt_rtx"} | option))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(tensorrt.FLAVOURS, "tensorrt_rtx", "tensorrt_rtx_that_is_not_there")
    with pytest.raises(EngineError, match="No module named 'tensorrt_rtx_that_is_not_there'; run: pip install"):
        tensorrt.executors(tiny_model(), flavour="tensorrt_rtx")


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_gpu_it_does_not_run_and_says_so(denoise):
    with pytest.raises(
        EngineError, match="engine tensorrt_rtx: runs on an NVIDIA GPU, and torch finds none; .*engine=onnx"
    ):
        denoise(*arguments(denoise, 1))
    with pytest.raises(EngineError, match="does not load the engine: .*cudaError"):
        denoise._open(denoise.build())  # what TensorRT itself says


@pytest.mark.skipif(not GPU, reason="running an engine needs an NVIDIA GPU")
@pytest.mark.parametrize("batch", [1, 5, 8])
def test_it_gives_what_torch_gives_also_from_a_captured_graph(denoise, batch):
    model = denoise.exporter.model
    given = [x.cuda() for x in arguments(denoise, batch)]
    with torch.no_grad():
        wanted = StaticStep(model).denoise(*given)
    try:
        results = denoise(*given)
    except EngineError as error:
        pytest.skip(f"this GPU is refused: {error}")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = denoise(*given)
    graph.replay()
    for each in (results, captured):
        assert each[0].equal(wanted[0])
        for result, expected in zip(each[1:], wanted[1:], strict=True):
            torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
