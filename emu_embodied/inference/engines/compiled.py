"""The steps through torch.compile; on CUDA a whole frame, K passes and its commit, as one captured graph.

Knows static buffers and decoding functions as callables, and nothing of what they decide.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import types
import weakref
from collections.abc import Callable

import torch

from emu_embodied.errors import EngineError
from emu_embodied.inference.static_step import STEPS
from emu_embodied.model.token_model import TokenModel

from .static import StaticCache, StaticEngine


class CompiledEngine(StaticEngine):
    """Inductor's kernels for every step, compiled for each batch size when it first comes; CUDA graphs around whole frames.

    Args:
        model: the token model, in eval mode, in the precision to compute in.

    Raises:
        EngineError: no compiler works here.
    """

    def __init__(self, model: TokenModel) -> None:
        super().__init__(model, name="compiled")
        check_compiler(self._offsets.is_cuda)
        how = {"cpp_wrapper": not self._offsets.is_cuda}  # on the CPU a token's call costs a third less than from Python
        steps = {name: getattr(self.step, name) for name in STEPS}
        self.run = {name: PerBatch(step, options=how) for name, step in steps.items()}
        self._graphs: dict[tuple, GraphedFrame] = {}

    def __reduce__(self):
        """For `copy.deepcopy` and `pickle`: the copy compiles anew."""
        return type(self), (self.model,)

    def whole_frame(self, decode: Callable) -> Callable:
        """On CUDA the same function as a captured graph, one for each configuration and batch size; else itself."""
        if not self._offsets.is_cuda:
            return decode

        def frame(engine, cache, actions_BA, config, generator, noise=None):
            # How many rounds "exact" takes depends on what is drawn; the worlds' own noise is drawn on the CPU.
            if config.decoding == "exact" or not isinstance(generator, torch.Generator | None):
                return decode(engine, cache, actions_BA, config, generator, noise)
            key = (decode, config, generator, noise, len(actions_BA), cache.pending)  # which live as long as their graph
            if key not in self._graphs:
                self._graphs[key] = GraphedFrame(self, decode, cache, actions_BA, config, generator, noise)
            return self._graphs[key](cache, actions_BA)

        return frame


def check_compiler(cuda: bool = False) -> None:
    """Has a line compiled against Python's headers, which is what Inductor (C++) or Triton (C, for a GPU) will do.

    Raises:
        EngineError: there is no compiler, or it does not work.
    """
    names = [os.environ.get("CC"), "gcc", "clang", "cc"] if cuda else [os.environ.get("CXX"), "g++", "clang++"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    remedy = "install one with Python's headers (Debian, Ubuntu: apt-get install g++ python3-dev), or use engine=onnx"
    if compiler is None:
        raise EngineError("engine compiled", f"no {'C' if cuda else 'C++'} compiler is found", remedy)
    words = [compiler, "-x", "c" if cuda else "c++", f"-I{sysconfig.get_path('include')}", "-fsyntax-only", "-"]
    try:
        done = subprocess.run(words, input="#include <Python.h>\n", capture_output=True, text=True, timeout=60)
        fault = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    if fault:
        raise EngineError("engine compiled", f"{compiler}: {fault}", remedy)


class PerBatch:
    """A step compiled anew for each batch size.

    `torch.compile` keeps eight variants of one code object, for all its instances together, and refuses the ninth; so each
    batch size gets a copy of the code.

    Args:
        step: a method of `StaticStep`, bound.
        options: of `torch.compile`.
    """

    def __init__(self, step: types.MethodType, **options) -> None:
        self.step, self.options = step, options
        self._compiled: dict[int, Callable] = {}

    def __call__(self, keys: torch.Tensor, *arguments):
        batch = keys.shape[1]
        if batch not in self._compiled:
            step = self.step.__func__
            assert isinstance(step, types.FunctionType)
            copy = types.FunctionType(step.__code__.replace(), step.__globals__, step.__name__)
            bound = types.MethodType(copy, self.step.__self__)
            self._compiled[batch] = torch.compile(bound, dynamic=False, fullgraph=True, **self.options)
        return self._compiled[batch](keys, *arguments)


class GraphedFrame:
    """One frame's decoding, captured on buffers of its own and replayed for every cache that is brought there.

    Args:
        engine: whose steps are captured.
        decode: the decoding function.
        cache: an example, of the batch size and with or without a frame that waits for its commit; not changed.
        actions_BA: an example.
        config, generator, noise: as the function takes them; the generator goes on drawing with each replay.
    """

    def __init__(self, engine: CompiledEngine, decode: Callable, cache: StaticCache, actions_BA, config, generator, noise):
        self.buffers, self.actions_BA = cache.expand(1), actions_BA.clone()
        self.owner: Callable[[], StaticCache | None] = lambda: None
        pending, side = cache.pending, torch.cuda.Stream()
        state = generator.get_state() if generator is not None else None
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, and lets libraries allocate
            for _ in range(3):
                self._load(cache)
                decode(engine, self.buffers, self.actions_BA, config, generator, noise)
        torch.cuda.current_stream().wait_stream(side)
        self._load(cache)
        if generator is not None and state is not None:
            generator.set_state(state)
        self.graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.results = decode(engine, self.buffers, self.actions_BA, config, generator, noise)
        self.leaves_pending, self.buffers.pending = self.buffers.pending, pending

    def __call__(self, cache: StaticCache, actions_BA: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Decodes the next frame of a cache, whose state then lies in this graph's buffers until another's is brought."""
        if cache.keys is not self.buffers.keys:
            self._evict()
            self._load(cache)
            vars(cache).update(self.buffers.tensors())
        self.owner = weakref.ref(cache)
        self.actions_BA.copy_(actions_BA)
        self.graph.replay()
        cache.pending, cache.source = self.leaves_pending, None
        return tuple(result.clone() for result in self.results)

    def _evict(self) -> None:
        """Gives whoever's state lies here buffers of its own."""
        owner = self.owner()
        if owner is not None and owner.keys is self.buffers.keys:
            vars(owner).update({name: tensor.clone() for name, tensor in self.buffers.tensors().items()})

    def _load(self, cache: StaticCache) -> None:
        for name, tensor in self.buffers.tensors().items():
            tensor.copy_(getattr(cache, name))
        self.buffers.pending, self.buffers.read, self.buffers.source = cache.pending, 0, None
