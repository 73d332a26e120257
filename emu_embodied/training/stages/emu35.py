"""Fine-tunes a released model to predict the next frame from an action, whole or by adapters. Knows no simulator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from emu_embodied.checkpoint import World
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.emu35.action_adapter import AdoptionConfig, adopt
from emu_embodied.emu35.checkpoint import Base, save_adapted
from emu_embodied.emu35.lora import LoRAConfig, add_adapters
from emu_embodied.errors import ConfigError
from emu_embodied.training.checks import check_cache, check_trajectories
from emu_embodied.training.folder import TrainingRun, facts_of, train_once
from emu_embodied.training.loop import LoopConfig, trained_state
from emu_embodied.training.objectives import TrajectoryConfig
from emu_embodied.training.stages.trajectory import TrajectoryJob, train_trajectory


@dataclass(frozen=True)
class FineTuning:
    """Everything that the preset of a released model decides.

    Attributes:
        adoption: how frames, instructions and actions become its tokens; `image_size` is the dataset's.
        lora: the adapters, or with rank 0 the whole language model.
        trajectory, trajectory_loop: phases and weights of the loss, and the optimisation.
        held_out: episodes at the dataset's end that training never sees.
        seed: of initialisation and batches.

    Raises:
        ConfigError: soft targets, which need all pairs of codes.
    """

    adoption: AdoptionConfig
    lora: LoRAConfig
    trajectory: TrajectoryConfig
    trajectory_loop: LoopConfig
    held_out: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trajectory.soften:
            raise ConfigError("trajectory.soften", self.trajectory.soften, "give 0: it keeps all pairs of codes")


def fine_tune(
    cache: FrameCache,
    recipe: FineTuning,
    base: Base,
    world: World,
    run: TrainingRun,
) -> Path:
    """Trains from where it stopped, and writes `run.folder / checkpoint`, which refers to the base.

    The released weights are in bfloat16 on CUDA and in float32 on the CPU; what is trained of adapters and new parts is
    float32. With 0 steps the checkpoint is the released model with actions that do nothing yet.

    Args:
        cache: the whole dataset; its last `held_out` episodes are left for evaluation.
        recipe: sizes and schedule.
        base: the released models.
        world: names and scales of what the frames show.
        run: where.

    Returns:
        The checkpoint folder.

    Raises:
        DatasetError: too few episodes, or frames of another size.
        CheckpointError: released models that are missing or damaged, or a run folder with a state of other settings.
        ConfigError: all weights are to be trained, and rounded.
        EngineError: adapters or rounding are asked for, and peft or torchao is not installed.
    """
    check_cache(cache, recipe.held_out, recipe.adoption.image_size)
    whole = recipe.lora.rank == 0  # small steps would be lost in bfloat16
    if whole and base.quantisation is not None:
        raise ConfigError(
            "quantisation", base.quantisation, "only a base of adapters can be rounded: recipe.lora.rank > 0"
        )

    def work() -> None:
        torch.manual_seed(recipe.seed)
        dtype = torch.bfloat16 if run.device.type == "cuda" and not whole else torch.float32
        tokenizer, text, model = adopt(base.load(dtype, run.device), world, cache.actions.shape[1], recipe.adoption)
        check_trajectories(cache, recipe.held_out, text, model.config, world)
        tokenizer.requires_grad_(False)
        if whole:
            model.transformer.requires_grad_(True)
        else:
            add_adapters(model.transformer, recipe.lora)
        job = TrajectoryJob(tokenizer, text, world, cache, recipe, run)
        model = train_trajectory(model, job)
        facts_of_training = {"episodes": cache.episodes, "frames": len(cache), "recipe": asdict(recipe)}
        trained, learnt = trained_state(model), world.learnt_from(cache.known)
        save_adapted(run.folder / "checkpoint", base, recipe.adoption, recipe.lora, model, trained, learnt, facts_of_training)

    learns = {"recipe": asdict(recipe), "world": asdict(world)}
    facts = facts_of("emu3.5", cache, learns | {"base": base.fingerprint, "quantisation": base.quantisation})
    return train_once(run, "checkpoint", facts, work)
