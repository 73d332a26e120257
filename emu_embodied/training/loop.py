"""The training loop: any module, any loss, resumable bit for bit. Knows no tokens and no frames.

All randomness of step i is drawn from (seed, stage, i), so weights, optimiser and the step number are the whole state.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from emu_embodied.errors import CheckpointError
from emu_embodied.storage.files import Folder, save_folder
from emu_embodied.storage.schema import build
from emu_embodied.validation import choice, number_fields, whole_fields, whole_number

from .muon import Layered, Muon
from .signals import PatientSignals

type LossFunction[M] = Callable[[M, int], tuple[torch.Tensor, dict[str, float]]]
type Evaluator[M] = Callable[[M], dict[str, float]]
OPTIMISERS = ("adamw", "muon")
MOMENTS = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum",),
}  # what they remember of a parameter


@dataclass(frozen=True)
class LoopConfig:
    """How a stage is optimised.

    Attributes:
        steps: optimiser steps of the stage.
        learning_rate: peak; linear warm-up, then half-cosine to zero.
        warmup: steps of warm-up.
        optimiser: "adamw", or "muon" for the module's `hidden_matrices()` and AdamW for embeddings, heads and vectors.
        weight_decay: on matrices only.
        clip: largest gradient norm.
        average: decay of the exponential moving average of the weights, which is what is evaluated and kept.
        evaluate_every, save_every, log_every: steps between.

    Raises:
        ConfigError: a number outside its range, or an unknown optimiser.
    """

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 100
    optimiser: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.998
    evaluate_every: int = 1000
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        every = dict.fromkeys((f"{what}_every" for what in ("evaluate", "save", "log")), (1, None))
        whole_fields(self, {"steps": (0, None), "warmup": (0, None), **every})
        rates = dict.fromkeys(("learning_rate", "weight_decay", "clip"), (0, None))
        number_fields(self, {**rates, "average": (0, 1)})
        choice("optimiser", self.optimiser, OPTIMISERS)


def train_stage[M: nn.Module](
    name: str,
    module: M,
    loss_function: LossFunction[M],
    config: LoopConfig,
    folder: Path,
    *,
    evaluate: Evaluator[M] | None = None,
    report: Callable[[str], None] = print,
) -> M:
    """Trains one stage to its end, from wherever it stopped, and returns the averaged module in eval mode.

    The state is saved before the model is evaluated, and an evaluation that fails is reported and costs nothing else. Ctrl-C
    and SIGTERM wait for the end of the step that is under way; a second one ends it at once, and nothing is saved then.

    Args:
        name: of the stage; its state is kept in `folder / name`.
        module: is trained in place; its device decides where.
        loss_function: (module, step) -> loss and figures to log; draws its randomness from the step.
        evaluate: figures of the averaged module on held-out data.
        report: prints a line of progress.

    Raises:
        CheckpointError: the state in `folder` is damaged or of other settings.
        KeyboardInterrupt: passed on after the state is saved.
    """
    state = _State(module, config, folder / name)
    if state.step >= config.steps:
        return state.average
    module.train()
    signals = PatientSignals()
    log = _Log(name, config, folder, state.step, report)
    try:
        with signals:
            while state.step < config.steps:
                with signals.held():
                    figures = state.advance(loss_function)
                log.add(figures)
                if state.due(config.log_every):
                    log.write_means(state.step)
                if state.due(config.save_every):
                    log.writer.flush()
                    state.save()
                if evaluate and state.due(config.evaluate_every):
                    log.judge(evaluate, state.average, state.step)
    except KeyboardInterrupt:
        if not signals.within:
            state.save()
            report(f"{name}: stopped at step {state.step} of {config.steps}; the same command continues")
        raise
    finally:
        log.writer.close()
    return state.average


class _State[M: nn.Module]:
    """All that a stage is at, which is all that is saved of it; begins from what `folder` holds.

    Attributes:
        average: the moving average of the module, in eval mode.
        step: steps that were taken.
    """

    def __init__(self, module: M, config: LoopConfig, folder: Path) -> None:
        self.module, self.config, self.folder, self.optimisers = module, config, folder, _optimisers(module, config)
        frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
        self.average = copy.deepcopy(module, frozen).eval()  # what is not trained is there once
        self.step = self._restore()

    def due(self, every: int) -> bool:
        """Whether something is to be done after so many steps, and at the end, now."""
        return self.step % every == 0 or self.step == self.config.steps

    def advance(self, loss_function: LossFunction[M]) -> dict[str, float]:
        """One step of the optimisers and of the average; returns the loss and its figures."""
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = _learning_rate(self.config, self.step)
        kind = next(self.module.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            loss, figures = loss_function(self.module, self.step)
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        _update_average(self.average, self.module, min(self.config.average, self.step / (self.step + 10)))
        return {"loss": loss.item()} | figures

    def save(self) -> None:
        """Writes it to its folder."""
        moments = {}
        for which, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                moments |= {f"{which}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors = {"module": trained_state(self.module), "average": trained_state(self.average), "optimiser": moments}
        save_folder(self.folder, tensors, {"progress": {"step": self.step, "loop": asdict(self.config)}})

    def _restore(self) -> int:
        """Loads what the folder holds; the step that it was saved at."""
        folder = self.folder
        if not folder.exists() and not (folder.parent / f".{folder.name}.previous").exists():
            return 0
        state, place, wanted = Folder(folder), f"{folder}/progress.json", asdict(self.config)
        progress = state.documents.get("progress", {})
        saved = asdict(build(LoopConfig, progress.get("loop"), f"{place}: loop"))
        for key in ("steps", "learning_rate", "optimiser", "warmup", "weight_decay", "clip", "average"):
            if saved[key] != wanted[key]:
                rule = f"this run asks for {wanted[key]}: use the same, or another run folder"
                raise CheckpointError(f"{folder}: {key}", saved[key], rule)
        step = whole_number(f"{place}: step", progress.get("step"), 0, self.config.steps, CheckpointError)
        for name, part in (("module", self.module), ("average", self.average)):
            load_trained_state(part, state.tensors(name, trained_state(part)))
        moments = _moments(folder, state.tensors("optimiser"), self.optimisers)
        for optimiser, found in zip(self.optimisers, moments, strict=True):
            optimiser.load_state_dict(optimiser.state_dict() | {"state": found})
        return step


class _Log:
    """What is shown of a stage, and written for TensorBoard."""

    def __init__(self, name: str, config: LoopConfig, folder: Path, first: int, report: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what is logged after the restored step is logged once more, and TensorBoard forgets what it has of it
        self.writer = SummaryWriter(folder / "tensorboard" / name, purge_step=first + 1)
        self.name, self.steps, self.report, self.first, self.began = name, config.steps, report, first, time.monotonic()
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, figures: dict[str, float]) -> None:
        """Keeps a step's figures for their means."""
        for key, value in figures.items():
            total, count = self.sums.get(key, (0.0, 0))
            self.sums[key] = (total + value, count + 1)

    def write_means(self, step: int) -> None:
        """Logs the means of the figures since the last time, and how long the stage will take."""
        speed = (step - self.first) / (time.monotonic() - self.began)
        rest = f"  {speed:.2f} steps/s, {(self.steps - step) / speed / 60:.0f} min left"
        self._write(self.name, step, {key: total / count for key, (total, count) in self.sums.items()}, rest)
        self.sums = {}

    def judge[M: nn.Module](self, evaluate: Evaluator[M], average: M, step: int) -> None:
        """Logs the figures on held-out data, or why there are none."""
        name = f"{self.name}/held-out"
        try:
            figures = evaluate(average)
        except Exception as error:  # whatever judges is not what is trained
            reason = " ".join(str(error).split()) or type(error).__name__
            self.report(f"{name} {step}/{self.steps}: not judged, the training goes on: {reason}")
        else:
            self._write(name, step, figures)

    def _write(self, name: str, step: int, figures: dict[str, float], rest: str = "") -> None:
        for key, value in figures.items():
            self.writer.add_scalar(f"{name}/{key}", value, step)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        self.report(f"{name} {step}/{self.steps}: {shown}{rest}")


def trained_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without what is frozen: of an adapted model, the adapter and what is new."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trained_state(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Loads what `trained_state` gave.

    Raises:
        RuntimeError: names or shapes that differ.
    """
    wanted = trained_state(module).keys()
    if wanted != state.keys():
        raise RuntimeError(f"missing {sorted(wanted - state.keys())}, unexpected {sorted(state.keys() - wanted)}")
    module.load_state_dict(state, strict=False)


def _learning_rate(config: LoopConfig, step: int) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))


def _optimisers(module: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    inner: set[int] = set()
    if config.optimiser == "muon":
        assert isinstance(module, Layered)
        inner = {id(p) for p in module.hidden_matrices()}
    rest = [p for p in parameters if id(p) not in inner]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    optimisers: list[torch.optim.Optimizer] = [adam]
    if inner:
        matrices = [p for p in parameters if id(p) in inner]
        optimisers.append(Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay))
    return optimisers


@torch.no_grad()
def _update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """One step of the moving average. `AveragedModel` would copy what is frozen too, which may be a whole released model."""
    kept, current = (list[torch.Tensor](p for p in m.parameters() if p.requires_grad) for m in (average, module))
    get_ema_multi_avg_fn(decay)(kept, current, None)
    for kept, current in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(current)


def _moments(folder: Path, tensors: dict[str, torch.Tensor], optimisers) -> list[dict[int, dict[str, torch.Tensor]]]:
    """What each optimiser remembers of each parameter, of tensors called `OPTIMISER.PARAMETER.NAME`.

    Raises:
        CheckpointError: names, shapes or dtypes that these optimisers do not have.
    """
    wanted = {}
    for which, optimiser in enumerate(optimisers):
        for index, p in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            for name in MOMENTS[type(optimiser)]:
                wanted[f"{which}.{index}.{name}"] = ((), torch.float32) if name == "step" else (p.shape, p.dtype)
    found: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimisers]
    for key, value in tensors.items():
        if wanted.get(key) != (value.shape, value.dtype):
            found_here = f"{key}: {value.dtype} of shape {tuple(value.shape)}"
            raise CheckpointError(f"{folder}: optimiser", found_here, "it is of another model: use another run folder")
        which, index, name = key.split(".")
        found[int(which)].setdefault(int(index), {})[name] = value
    for which, optimiser in enumerate(optimisers):
        for index, state in found[which].items():
            if missing := set(MOMENTS[type(optimiser)]) - state.keys():
                raise CheckpointError(f"{folder}: optimiser", f"no {which}.{index}.{min(missing)}", "train anew")
    return found
