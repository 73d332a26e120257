"""From frames to a checkpoint: text BPE, frame tokenizer, codes, trajectory model. Knows no simulator and no planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from emu_embodied.checkpoint import World, fingerprint, load_checkpoint, save_checkpoint
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import ConfigError
from emu_embodied.model.config import TokenModelConfig
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.transformer import TransformerConfig
from emu_embodied.model.vocabulary import Vocabulary
from emu_embodied.tokenizers.frames import FrameTokenizer, FrameTokenizerConfig
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.checks import check_cache, check_scale, check_trajectories
from emu_embodied.training.stages.trajectory import TrajectoryJob, train_trajectory

from .folder import facts_of, train_once
from .loop import LoopConfig, train_stage
from .objectives import TokenizerObjective, TrajectoryConfig


@dataclass(frozen=True)
class Recipe:
    """Everything a preset decides.

    Attributes:
        tokenizer: sizes of the frame tokenizer; `image_size` is the dataset's.
        tokenizer_batch: frames a step.
        tokenizer_loop: its optimisation.
        transformer: sizes of the trajectory model's transformer, without `vocab_size`.
        context_frames: C.
        previous_frame_source: see `TokenModelConfig`.
        next_token_shift, noise: see `TokenModelConfig`.
        trajectory: phases and weights.
        trajectory_loop: its optimisation.
        text_length, text_size, action_bins: the instruction's padded length, the BPE's ids, the bins of an action value.
        held_out: episodes at the dataset's end that training never sees.
        seed: of initialisation and batches.
    """

    tokenizer: FrameTokenizerConfig
    tokenizer_batch: int
    tokenizer_loop: LoopConfig
    transformer: Mapping[str, int | float]
    context_frames: int
    previous_frame_source: bool
    next_token_shift: bool
    noise: str
    trajectory: TrajectoryConfig
    trajectory_loop: LoopConfig
    text_length: int = 16
    text_size: int = 384
    action_bins: int = 64
    held_out: int = 100
    seed: int = 0


def train_checkpoint(
    cache: FrameCache,
    recipe: Recipe,
    world: World,
    folder: Path,
    device: torch.device,
    *,
    evaluate_tokenizer: Callable[[FrameTokenizer], dict[str, float]] | None = None,
    evaluate_model: Callable[[FrameTokenizer, TextTokenizer, TokenModel], dict[str, float]] | None = None,
    notes: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Runs every stage, each from where it stopped, and writes `folder / checkpoint`.

    Args:
        cache: the whole dataset; its last `held_out` episodes are left for evaluation.
        recipe: sizes and schedules.
        world: names and scales of what the frames show.
        folder: of the run; stages keep their state in it.
        device: where to train; bf16 on CUDA, fp32 on the CPU.
        evaluate_tokenizer, evaluate_model: figures on held-out episodes, shown as training goes.
        notes: the command and its configuration, to be kept in `run.json`.
        report: prints a line of progress.

    Returns:
        The checkpoint folder.

    Raises:
        DatasetError: too few episodes, frames of another size, or anything else that `check_trajectories` finds.
        CheckpointError: the run folder holds a damaged state, or another run.
        ConfigError: another training is at work in the folder.
    """
    check_cache(cache, recipe.held_out, recipe.tokenizer.image_size)
    train_cache, _ = cache.split(recipe.held_out)
    text = TextTokenizer.train(train_cache.instructions, recipe.text_size)
    check_trajectories(cache, recipe.held_out, text, model_config(recipe, world, text, cache), world)

    def work() -> None:
        torch.manual_seed(recipe.seed)
        tokenizer = train_stage(
            "tokenizer",
            FrameTokenizer(recipe.tokenizer).to(device),
            TokenizerObjective(train_cache, recipe.tokenizer_batch, recipe.seed),
            recipe.tokenizer_loop,
            folder,
            evaluate=evaluate_tokenizer,
            report=report,
        )
        model = TokenModel(model_config(recipe, world, text, train_cache)).to(device)
        model.place_codes(tokenizer.places())
        job = TrajectoryJob(tokenizer, text, world, cache, recipe, folder)
        _finish(train_trajectory(model, job, evaluate_model=evaluate_model, report=report), job)

    facts = facts_of("all", cache, recipe=asdict(recipe), world=asdict(world))
    return train_once(folder, "checkpoint", facts, work, notes=notes, report=report)


def adapt_checkpoint(
    cache: FrameCache,
    recipe: Recipe,
    source: Path,
    folder: Path,
    device: torch.device,
    *,
    temperature: float | None = 0.0,
    shift: bool | None = None,
    evaluate_model: Callable[[FrameTokenizer, TextTokenizer, TokenModel], dict[str, float]] | None = None,
    notes: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """DiDA's adaptation of a checkpoint that decodes token by token: its noisy half learns to draw whole frames at once.

    Its sizes and tokenizers stay; the recipe gives the noise process, the loss and the schedule, whose autoregressive phase is
    skipped. The causal half goes on learning beside (Emu3.5, arXiv 2510.26583).

    Args:
        cache: the dataset; its last `held_out` episodes are left for evaluation.
        recipe: noise, loss and schedule.
        source: the checkpoint's folder.
        folder: of the run.
        device: where to train.
        temperature: the targets are frames that the unadapted model draws token by token at this temperature; None for the
            data's own frames.
        shift: whether the state before a noisy slot predicts it, as in next-token prediction; None decides by `keep_shift`.
        evaluate_model: figures on held-out episodes.
        notes, report: as in `train_checkpoint`.

    Returns:
        The checkpoint folder.

    Raises:
        DatasetError: too few episodes, frames of another size, or actions in other units than the source's.
        CheckpointError: the source is missing or damaged, or the run folder holds another run.
    """
    tokenizer, text, teacher, world, config = load_checkpoint(source)
    check_cache(cache, recipe.held_out, tokenizer.config.image_size)
    shift = keep_shift(config) if shift is None else shift
    wired = replace(teacher.config, next_token_shift=shift, noise=recipe.noise)
    recipe = _of_checkpoint(recipe, tokenizer, text, wired)
    check_trajectories(cache, recipe.held_out, text, wired, world)
    check_scale(cache, world)
    torch.manual_seed(recipe.seed)
    model = TokenModel(wired)
    model.load_state_dict(teacher.state_dict())

    def work() -> None:
        job = TrajectoryJob(tokenizer.to(device), text, world, cache, recipe, folder)
        trained = train_trajectory(
            model.to(device),
            job,
            evaluate_model=evaluate_model,
            report=report,
            teacher=None if temperature is None else teacher.to(device).requires_grad_(False),
            temperature=temperature or 0.0,
        )
        _finish(trained, job, source=fingerprint(source))

    how = {"source": fingerprint(source), "temperature": temperature}
    facts = facts_of("dida", cache, recipe=asdict(recipe), world=asdict(world), **how)
    return train_once(folder, "checkpoint", facts, work, notes=notes, report=report)


def continue_checkpoint(
    cache: FrameCache,
    recipe: Recipe,
    source: Path,
    world: World,
    folder: Path,
    device: torch.device,
    *,
    evaluate_model: Callable[[FrameTokenizer, TextTokenizer, TokenModel], dict[str, float]] | None = None,
    notes: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Trains a checkpoint on with other data: its sizes, tokenizers and weights stay where they are, and go on from there.

    The new checkpoint is of the new data: their actions' names and scale, and their labels. Where these are others than the
    source's, the heads that read them begin anew.

    Args:
        cache: the dataset; its last `held_out` episodes are left for evaluation.
        recipe: loss and schedule, whose autoregressive phase is skipped.
        source: the checkpoint's folder.
        world: names and scales of what the new frames show.
        folder: of the run.
        device: where to train.
        evaluate_model, notes, report: as in `train_checkpoint`.

    Returns:
        The checkpoint folder.

    Raises:
        DatasetError: too few episodes, frames of another size, actions of another number of values, or a text that is too long.
        CheckpointError: the source is missing or damaged, or the run folder holds another run.
        ConfigError: a source that draws key frames, which it would forget.
    """
    tokenizer, text, known, before, _ = load_checkpoint(source)
    if known.config.generates_subgoals:
        rule = "it draws key frames from words, which it would forget: train it on with stage=language"
        raise ConfigError("from", str(source), rule)
    check_cache(cache, recipe.held_out, tokenizer.config.image_size)
    labels = {"objects": tuple(world.objects), "position_scale": tuple(world.position_scale)}
    wired = replace(known.config, **labels)
    recipe = _of_checkpoint(recipe, tokenizer, text, wired)
    check_trajectories(cache, recipe.held_out, text, wired, world)
    torch.manual_seed(recipe.seed)
    model, state = TokenModel(wired), known.state_dict()
    alike = wired == known.config
    world = replace(world, known=before.settled().known if alike else None)
    if not alike:
        state |= {name: value for name, value in model.state_dict().items() if name.startswith("heads.")}
    model.load_state_dict({name: state[name] for name in model.state_dict()})

    def work() -> None:
        job = TrajectoryJob(tokenizer.to(device), text, world, cache, recipe, folder)
        trained = train_trajectory(model.to(device), job, evaluate_model=evaluate_model, report=report)
        _finish(trained, job, source=fingerprint(source))

    facts = facts_of("trajectory", cache, recipe=asdict(recipe), world=asdict(world), source=fingerprint(source))
    return train_once(folder, "checkpoint", facts, work, notes=notes, report=report)


def _of_checkpoint(recipe: Recipe, tokenizer: FrameTokenizer, text: TextTokenizer, model: TokenModelConfig) -> Recipe:
    """The recipe with a checkpoint's sizes in place of its own, and without an autoregressive phase."""
    transformer = {name: value for name, value in asdict(model.transformer).items() if name != "vocab_size"}
    alike = ("context_frames", "previous_frame_source", "next_token_shift", "noise", "text_length")
    return replace(
        recipe,
        tokenizer=tokenizer.config,
        transformer=transformer,
        trajectory=replace(recipe.trajectory, autoregressive_until=0.0),
        text_size=text.size,
        action_bins=model.vocabulary.action_bins,
        **{name: getattr(model, name) for name in alike},
    )


def keep_shift(config: Mapping) -> bool:
    """Whether the noisy half of a checkpoint's configuration is to be trained with the next-token shift.

    A noisy half that was trained keeps its wiring. Where only the causal half was, slots are best read where it predicts
    them already: one token earlier. Trained it was where the recorded recipe left the autoregressive phase.
    """
    until: object = config["training"]
    for key in ("recipe", "trajectory", "autoregressive_until"):
        until = until.get(key) if isinstance(until, Mapping) else None
    trained = isinstance(until, int | float) and until < 1.0
    return config["model"].get("next_token_shift", False) if trained else True


def _finish(model: TokenModel, job: TrajectoryJob, **facts: Any) -> None:
    """Writes the checkpoint."""
    cache, recipe = job.cache, job.recipe
    facts = {"episodes": cache.episodes, "frames": len(cache), "recipe": asdict(recipe), **facts}
    world = job.world.learnt_from(cache.split(recipe.held_out)[0].known)
    save_checkpoint(job.folder / "checkpoint", job.tokenizer, job.text, model, world, facts)


def model_config(recipe: Recipe, world: World, text: TextTokenizer, cache: FrameCache) -> TokenModelConfig:
    """The trajectory model's sizes, from the recipe and the data."""
    vocabulary = Vocabulary(text.size, recipe.tokenizer.codebook_size, recipe.action_bins)
    sizes: dict[str, Any] = {"vocab_size": vocabulary.size, **recipe.transformer}
    return TokenModelConfig(
        vocabulary=vocabulary,
        transformer=TransformerConfig(**sizes),
        grid=recipe.tokenizer.grid,
        action_dim=cache.actions.shape[1],
        text_length=recipe.text_length,
        context_frames=recipe.context_frames,
        previous_frame_source=recipe.previous_frame_source,
        next_token_shift=recipe.next_token_shift,
        noise=recipe.noise,
        objects=tuple(world.objects),
        position_scale=world.position_scale,
    )
