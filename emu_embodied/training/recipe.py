"""From frames to a checkpoint: text BPE, frame tokenizer, codes, trajectory model. Knows no simulator and no planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from emu_embodied.checkpoint import World, load_checkpoint, save_checkpoint
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import DatasetError
from emu_embodied.noise import make_noise
from emu_embodied.token_model import TokenModel, TokenModelConfig
from emu_embodied.tokenizers.frames import FrameTokenizer, FrameTokenizerConfig
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.loop import LoopConfig, train_stage
from emu_embodied.training.objectives import TokenizerObjective, TrajectoryConfig, TrajectoryObjective
from emu_embodied.training.windows import WindowSampler
from emu_embodied.transformer import TransformerConfig
from emu_embodied.vocabulary import Vocabulary


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
        report: prints a line of progress.

    Returns:
        The checkpoint folder.

    Raises:
        DatasetError: too few episodes, or frames of another size.
        CheckpointError: the run folder holds a damaged state, or one of other settings.
    """
    check_cache(cache, recipe.held_out, recipe.tokenizer.image_size)
    train_cache = cache.select(range(cache.episodes - recipe.held_out))
    text = TextTokenizer.train(train_cache.instructions, recipe.text_size)
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
    job = (tokenizer, text, world, cache, recipe, folder)
    return _finish(train_trajectory(model, *job, evaluate_model=evaluate_model, report=report), *job)


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
        report: prints a line of progress.

    Returns:
        The checkpoint folder.

    Raises:
        DatasetError: too few episodes, or frames of another size.
        CheckpointError: the source is missing or damaged, or the run folder holds a state of other settings.
    """
    tokenizer, text, teacher, world, config = load_checkpoint(source)
    check_cache(cache, recipe.held_out, tokenizer.config.image_size)
    torch.manual_seed(recipe.seed)
    shift = keep_shift(config) if shift is None else shift
    recipe = replace(recipe, next_token_shift=shift)
    wired = replace(teacher.config, next_token_shift=shift, noise=recipe.noise)
    model = TokenModel(wired)
    model.load_state_dict(teacher.state_dict())
    if temperature is None:
        teacher = None
    else:
        teacher.to(device).requires_grad_(False)
    recipe = replace(recipe, trajectory=replace(recipe.trajectory, autoregressive_until=0.0))
    job = (tokenizer.to(device), text, world, cache, recipe, folder)
    options = {
        "evaluate_model": evaluate_model,
        "report": report,
        "teacher": teacher,
        "temperature": temperature or 0.0,
    }
    return _finish(train_trajectory(model.to(device), *job, **options), *job)


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


def check_cache(cache: FrameCache, held_out: int, image_size: int) -> None:
    """Refuses a dataset that a training cannot take.

    Raises:
        DatasetError: too few episodes, or frames of another size.
    """
    if cache.episodes <= held_out:
        raise DatasetError("episodes", cache.episodes, f"collect more than the {held_out} that are held out")
    if cache.pixels.shape[1:3] != (image_size, image_size):
        raise DatasetError("frame size", cache.pixels.shape[1:3], f"the tokenizer takes {image_size} px")


def train_trajectory(
    model: TokenModel,
    tokenizer,
    text,
    world: World,
    cache: FrameCache,
    recipe,
    folder: Path,
    *,
    evaluate_model: Callable | None = None,
    report: Callable[[str], None] = print,
    teacher: TokenModel | None = None,
    temperature: float = 0.0,
) -> TokenModel:
    """The trajectory stage: the averaged model, in eval mode.

    Args:
        model: is trained in place, where its parameters are to be.
        tokenizer, text, world: what turns the cache into tokens, and what its frames show.
        cache: the dataset; its last `recipe.held_out` episodes are left for evaluation.
        recipe: has `held_out`, `seed`, `trajectory` and `trajectory_loop`, as `Recipe`.
        folder: of the run.
        evaluate_model, report: as in `train_checkpoint`.
        teacher, temperature: of `TrajectoryObjective`.
    """
    train_cache = cache.select(range(cache.episodes - recipe.held_out))
    codes_FN, steps = encode_frames(tokenizer, train_cache, report), recipe.trajectory_loop.steps
    parts = (model, tokenizer, text, world, train_cache, codes_FN)
    objective = trajectory_objective(*parts, recipe.trajectory, steps, recipe.seed, teacher, temperature)
    evaluate = (lambda average: evaluate_model(tokenizer, text, average)) if evaluate_model else None
    return train_stage("trajectory", model, objective, recipe.trajectory_loop, folder, evaluate=evaluate, report=report)


def trajectory_objective(
    model: TokenModel,
    tokenizer,
    text,
    world: World,
    cache: FrameCache,
    codes_FN: torch.Tensor,
    trajectory: TrajectoryConfig,
    steps: int,
    seed: int,
    teacher: TokenModel | None = None,
    temperature: float = 0.0,
) -> TrajectoryObjective:
    """What windows of a cache teach about the dynamics.

    Args:
        model, tokenizer, text, world: what is trained, what turns the cache into tokens, and what its frames show.
        cache: the training episodes.
        codes_FN: visual codes of every frame.
        trajectory: what the windows hold and what counts in them.
        steps: length of the stage.
        seed: of the windows.
        teacher, temperature: of `TrajectoryObjective`.
    """
    instructions = text.batch(cache.instructions, model.config.text_length, model.config.vocabulary.pad)
    objects, places = tuple(world.objects), tokenizer.places()
    windows = WindowSampler(cache, codes_FN, instructions, objects, seed, trajectory.contact_share)
    noise = make_noise(model.config.noise, places)
    return TrajectoryObjective(windows, trajectory, steps, places, noise, teacher, temperature)


def _finish(model: TokenModel, tokenizer, text, world: World, cache: FrameCache, recipe: Recipe, folder: Path) -> Path:
    """Writes the checkpoint."""
    facts = {"episodes": cache.episodes, "frames": len(cache), "recipe": asdict(recipe)}
    world = world.learnt_from(cache.select(range(cache.episodes - recipe.held_out)).known)
    save_checkpoint(folder / "checkpoint", tokenizer, text, model, world, facts)
    return folder / "checkpoint"


def model_config(recipe: Recipe, world: World, text: TextTokenizer, cache: FrameCache) -> TokenModelConfig:
    """The trajectory model's sizes, from the recipe and the data."""
    vocabulary = Vocabulary(text.size, recipe.tokenizer.codebook_size, recipe.action_bins)
    return TokenModelConfig(
        vocabulary=vocabulary,
        transformer=TransformerConfig(vocab_size=vocabulary.size, **recipe.transformer),
        grid=recipe.tokenizer.grid,
        action_dim=cache.actions.shape[1],
        text_length=recipe.text_length,
        context_frames=recipe.context_frames,
        previous_frame_source=recipe.previous_frame_source,
        next_token_shift=recipe.next_token_shift,
        noise=recipe.noise,
        objects=tuple(world.objects),
        position_scale=tuple(world.position_scale),
    )


def encode_frames(
    tokenizer: FrameTokenizer, cache: FrameCache, report: Callable[[str], None], batch: int = 512
) -> torch.Tensor:
    """Codes (F, N) of every frame, in int16 where they fit, else in int32."""
    report(f"encoding {len(cache)} frames")
    pixels, device = torch.from_numpy(cache.pixels), next(tokenizer.parameters()).device
    kind = torch.int16 if tokenizer.config.codebook_size < 1 << 15 else torch.int32
    parts = [tokenizer.encode(pixels[i : i + batch].to(device)).cpu().to(kind) for i in range(0, len(pixels), batch)]
    return torch.cat(parts)
