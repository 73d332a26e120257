"""From frames to a checkpoint: text BPE, frame tokenizer, codes, trajectory model. Knows no simulator and no planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from emu_embodied.checkpoint import World, fingerprint, load_checkpoint, save_checkpoint
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import ConfigError
from emu_embodied.model.config import TokenModelConfig
from emu_embodied.model.noise import NOISES
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.transformer import TransformerConfig
from emu_embodied.model.vocabulary import Vocabulary
from emu_embodied.storage.schema import build
from emu_embodied.tokenizers.frames import FrameTokenizer, FrameTokenizerConfig
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.checks import check_cache, check_scale, check_trajectories
from emu_embodied.training.stages.trajectory import TrajectoryJob, train_trajectory
from emu_embodied.validation import choice

from .folder import TrainingRun, facts_of, train_once
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

    Raises:
        ConfigError: an unknown noise, or sizes of the transformer that do not fit together.
    """

    tokenizer: FrameTokenizerConfig
    tokenizer_batch: int
    tokenizer_loop: LoopConfig
    transformer: dict[str, int | float]
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

    def __post_init__(self) -> None:
        choice("noise", self.noise, NOISES)
        self.transformer_config(1)

    def transformer_config(self, vocab_size: int) -> TransformerConfig:
        """The transformer's sizes, with so many ids."""
        return build(TransformerConfig, {"vocab_size": vocab_size} | self.transformer, "transformer", ConfigError)


def train_checkpoint(
    cache: FrameCache,
    recipe: Recipe,
    world: World,
    run: TrainingRun,
) -> Path:
    """Runs every stage, each from where it stopped, and writes `run.folder / checkpoint`.

    Args:
        cache: the whole dataset; its last `held_out` episodes are left for evaluation.
        recipe: sizes and schedules.
        world: names and scales of what the frames show.
        run: where.

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
            FrameTokenizer(recipe.tokenizer).to(run.device),
            TokenizerObjective(train_cache, recipe.tokenizer_batch, recipe.seed),
            recipe.tokenizer_loop,
            run.folder,
            evaluate=run.evaluate_tokenizer,
            report=run.report,
        )
        model = TokenModel(model_config(recipe, world, text, train_cache)).to(run.device)
        model.place_codes(tokenizer.places())
        job = TrajectoryJob(tokenizer, text, world, cache, recipe, run)
        _finish(train_trajectory(model, job), job)

    facts = facts_of("all", cache, {"recipe": asdict(recipe), "world": asdict(world)})
    return train_once(run, "checkpoint", facts, work)


def adapt_checkpoint(
    cache: FrameCache,
    recipe: Recipe,
    source: Path,
    run: TrainingRun,
    *,
    temperature: float | None = 0.0,
    shift: bool | None = None,
) -> Path:
    """DiDA's adaptation of a checkpoint that decodes token by token: its noisy half learns to draw whole frames at once.

    Its sizes and tokenizers stay; the recipe gives the noise process, the loss and the schedule, whose autoregressive phase is
    skipped. The causal half goes on learning beside (Emu3.5, arXiv 2510.26583).

    Args:
        cache: the dataset; its last `held_out` episodes are left for evaluation.
        recipe: noise, loss and schedule.
        source: the checkpoint's folder.
        run: where.
        temperature: the targets are frames that the unadapted model draws token by token at this temperature; None for the
            data's own frames.
        shift: whether the state before a noisy slot predicts it, as in next-token prediction; None decides by `keep_shift`.

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
        job = TrajectoryJob(tokenizer.to(run.device), text, world, cache, recipe, run)
        trained = train_trajectory(
            model.to(run.device),
            job,
            teacher=None if temperature is None else teacher.to(run.device).requires_grad_(False),
            temperature=temperature or 0.0,
        )
        _finish(trained, job, source)

    learns = {"recipe": asdict(recipe), "world": asdict(world)}
    facts = facts_of("dida", cache, learns | {"source": fingerprint(source), "temperature": temperature})
    return train_once(run, "checkpoint", facts, work)


def continue_checkpoint(
    cache: FrameCache,
    recipe: Recipe,
    source: Path,
    world: World,
    run: TrainingRun,
) -> Path:
    """Trains a checkpoint on with other data: its sizes, tokenizers and weights stay where they are, and go on from there.

    The new checkpoint is of the new data: their actions' names and scale, and their labels. Where these are others than the
    source's, the heads that read them begin anew.

    Args:
        cache: the dataset; its last `held_out` episodes are left for evaluation.
        recipe: loss and schedule, whose autoregressive phase is skipped.
        source: the checkpoint's folder.
        world: names and scales of what the new frames show.
        run: where.

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
    wired = replace(known.config, objects=tuple(world.objects), position_scale=tuple(world.position_scale))
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
        job = TrajectoryJob(tokenizer.to(run.device), text, world, cache, recipe, run)
        _finish(train_trajectory(model.to(run.device), job), job, source)

    learns = {"recipe": asdict(recipe), "world": asdict(world)}
    facts = facts_of("trajectory", cache, learns | {"source": fingerprint(source)})
    return train_once(run, "checkpoint", facts, work)


def _of_checkpoint(recipe: Recipe, tokenizer: FrameTokenizer, text: TextTokenizer, model: TokenModelConfig) -> Recipe:
    """The recipe with a checkpoint's sizes in place of its own, and without an autoregressive phase."""
    transformer = {name: value for name, value in asdict(model.transformer).items() if name != "vocab_size"}
    return replace(
        recipe,
        tokenizer=tokenizer.config,
        transformer=transformer,
        trajectory=replace(recipe.trajectory, autoregressive_until=0.0),
        text_size=text.size,
        action_bins=model.vocabulary.action_bins,
        context_frames=model.context_frames,
        previous_frame_source=model.previous_frame_source,
        next_token_shift=model.next_token_shift,
        noise=model.noise,
        text_length=model.text_length,
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


def _finish(model: TokenModel, job: TrajectoryJob, source: Path | None = None) -> None:
    """Writes the checkpoint, which says where its training began."""
    cache, recipe = job.cache, job.recipe
    facts: dict[str, Any] = {"episodes": cache.episodes, "frames": len(cache), "recipe": asdict(recipe)}
    facts |= {} if source is None else {"source": fingerprint(source)}
    world = job.world.learnt_from(cache.split(recipe.held_out)[0].known)
    save_checkpoint(job.run.folder / "checkpoint", job.tokenizer, job.text, model, world, facts)


def model_config(recipe: Recipe, world: World, text: TextTokenizer, cache: FrameCache) -> TokenModelConfig:
    """The trajectory model's sizes, from the recipe and the data."""
    vocabulary = Vocabulary(text.size, recipe.tokenizer.codebook_size, recipe.action_bins)
    return TokenModelConfig(
        vocabulary=vocabulary,
        transformer=recipe.transformer_config(vocabulary.size),
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
