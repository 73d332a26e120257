"""The training loop under signals, faulty judges and resumes: what it saves is what an undisturbed run would have had."""

import os
import signal
from collections import Counter

import pytest
import torch
from torch import nn

from emu_embodied.errors import DatasetError
from emu_embodied.storage.files import load_folder
from emu_embodied.training.loop import LoopConfig, train_stage

QUIET = {"report": lambda line: None}
STEPS = 20


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def loss(m: nn.Module, step: int):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (m(x) - x.flip(1)).square().mean(), {}


def config(**other) -> LoopConfig:
    return LoopConfig(STEPS, **{"warmup": 1, "log_every": 1, "save_every": 100, **other})


def weights(m: nn.Module) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in m.parameters())


class Disturbed(torch.autograd.Function):
    """The identity, whose backward pass runs `deed`: a moment in the middle of a step."""

    @staticmethod
    def forward(ctx, x, deed):
        ctx.deed = deed
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.deed()
        return grad, None


def disturbed(at: int, deed):
    """`loss`, with a deed in the backward pass of one step."""

    def inner(m: nn.Module, step: int):
        value, figures = loss(m, step)
        return (Disturbed.apply(value, deed), figures) if step == at else (value, figures)

    return inner


def raises(number: int):
    def stop(signum, frame):
        raise KeyboardInterrupt(f"signal {signum}")

    return signal.signal(number, stop)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_step_is_heard_at_its_end(tmp_path, number, optimiser):
    nets, before = [module(), module()], raises(number)
    for net in nets:
        net.hidden_matrices = lambda net=net: [net[0].weight]
    try:
        whole = train_stage("a", nets[0], loss, config(optimiser=optimiser), tmp_path / "whole", **QUIET)
        kill = disturbed(9, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            train_stage("a", nets[1], kill, config(optimiser=optimiser), tmp_path / "parts", **QUIET)
        assert signal.getsignal(number).__name__ == "stop"
        assert (
            load_folder(tmp_path / "parts" / "a")[1]["progress"]["step"] == 10
        )  # the step that was under way is whole
        parts = train_stage("a", nets[1], loss, config(optimiser=optimiser), tmp_path / "parts", **QUIET)
    finally:
        signal.signal(number, before)
    assert weights(parts) == weights(whole)


def test_a_second_signal_ends_the_step_at_once_and_saves_nothing(tmp_path):
    reached = []

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("second")

    with pytest.raises(KeyboardInterrupt):
        train_stage("a", module(), disturbed(9, twice), config(save_every=8), tmp_path, **QUIET)
    assert reached == ["first"]
    assert load_folder(tmp_path / "a")[1]["progress"]["step"] == 8
    whole = train_stage("a", module(), loss, config(), tmp_path / "whole", **QUIET)
    parts = train_stage("a", module(), loss, config(), tmp_path, **QUIET)
    assert weights(parts) == weights(whole)


def test_an_interrupt_out_of_a_step_itself_saves_nothing_half_done(tmp_path):
    def stop():
        raise KeyboardInterrupt

    whole = train_stage("a", module(), loss, config(), tmp_path / "whole", **QUIET)
    with pytest.raises(KeyboardInterrupt):
        train_stage("a", module(), disturbed(9, stop), config(), tmp_path / "parts", **QUIET)
    assert not (tmp_path / "parts" / "a").exists()
    assert weights(train_stage("a", module(), loss, config(), tmp_path / "parts", **QUIET)) == weights(whole)


def test_ctrl_c_while_judging_is_heard_at_once_and_the_state_is_kept(tmp_path):
    heard = []

    def judge(m: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        heard.append("judged to the end")
        return {}

    with pytest.raises(KeyboardInterrupt):
        train_stage("a", module(), loss, config(evaluate_every=7), tmp_path, evaluate=judge, **QUIET)
    assert not heard and load_folder(tmp_path / "a")[1]["progress"]["step"] == 7


@pytest.mark.parametrize(
    "error", [DatasetError("episodes", 0, "record some"), RuntimeError("two\nlines"), ZeroDivisionError()]
)
def test_a_judge_that_fails_is_reported_and_costs_nothing(tmp_path, error):
    lines, saved = [], []

    def judge(m: nn.Module) -> dict[str, float]:
        saved.append(load_folder(tmp_path / "a")[1]["progress"]["step"])
        raise error

    trained = train_stage(
        "a", module(), loss, config(save_every=10, evaluate_every=10), tmp_path, evaluate=judge, report=lines.append
    )
    whole = train_stage("a", module(), loss, config(), tmp_path / "whole", **QUIET)
    assert weights(trained) == weights(whole) and saved == [10, 20]
    told = [line for line in lines if "not judged" in line]
    assert len(told) == 2 and all("\n" not in line for line in told)


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path):
    """A run that was killed after its last save logs the steps since then again; what it logged of them is forgotten."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    for name in ("first", "second"):
        with pytest.raises(Killed):
            train_stage(name, module(), disturbed(13, die), config(save_every=5), tmp_path, **QUIET)
        train_stage(name, module(), loss, config(save_every=5), tmp_path, **QUIET)
    shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "tensorboard")).Reload()
    tags = {(run, tag) for run, kinds in shown.Runs().items() for tag in kinds["tensors"] + kinds["scalars"]}
    assert {tag for _, tag in tags} == {"first/loss", "second/loss"}
    for run, tag in tags:
        steps = Counter(event.step for event in shown.Scalars(run, tag))
        assert steps == Counter(range(1, STEPS + 1))
