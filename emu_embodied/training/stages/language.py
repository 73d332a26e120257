"""Teaches a world model to draw key frames from words, beside the dynamics it knows. Knows no simulator.

A batch is either dynamics (windows of actions and frames) or language: `instruction | frame | caption | key frame`, in the one
sequence and with the one transformer, as Emu3.5's interleaved text and images (arXiv 2510.26583).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.subgoals import SubgoalRows
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.vocabulary import Vocabulary
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.checks import check_cache, check_scale, check_trajectories
from emu_embodied.training.datasets import WindowBatch
from emu_embodied.training.folder import TrainingRun, facts_of, train_once
from emu_embodied.training.key_frame_batches import LanguageConfig, SubgoalBatch, SubgoalSampler
from emu_embodied.training.loop import LoopConfig, train_stage
from emu_embodied.training.objectives import TrajectoryConfig, TrajectoryObjective
from emu_embodied.training.stages.trajectory import encode_frames, trajectory_objective


class SubgoalObjective:
    """Language and dynamics in turn, by shares; both losses are those of the trajectory model.

    Args:
        sampler: of language batches.
        dynamics: the objective of the other steps.
        config: shares and weights.
        steps: length of the stage.
    """

    def __init__(
        self, sampler: SubgoalSampler, dynamics: TrajectoryObjective, config: LanguageConfig, steps: int
    ) -> None:
        self.sampler, self.dynamics, self.config, self.steps = sampler, dynamics, config, steps

    def __call__(self, module: TokenModel, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(self.sampler.seed * 1_000_003 + step)
        if torch.rand((), generator=generator).item() >= self.config.share:
            loss, figures = self.dynamics(module, step)
            return loss, {f"dynamics_{name}": value for name, value in figures.items()}
        return self._language(module, step, generator)

    def _language(self, module: TokenModel, step: int, generator: torch.Generator):
        c, device, v = self.config, module.noised.device, module.config.vocabulary
        batch = self.sampler.batch(step, step / self.steps)
        instruction_BI, caption_BS = batch.instruction_BI.clone(), batch.caption_BS.clone()
        chance_B = torch.rand(c.batch, generator=generator)
        instruction_BI[chance_B < c.unconditional] = v.pad
        caption_BS[chance_B < c.unconditional / 2] = v.pad
        codes_BN, target_BN = batch.codes_BN.to(device), batch.target_BN.to(device)
        text_BL = module.prompt(instruction_BI.to(device), codes_BN, caption_BS.to(device))
        level = torch.cos(math.pi / 2 * torch.rand(c.batch, 1, 1, generator=generator))
        level[torch.rand(c.batch, generator=generator) < c.fully_hidden] = 1.0
        noisy, hidden = self.dynamics.noise.corrupt(target_BN[:, None], level.to(device), generator)
        still = torch.zeros(c.batch, 1, module.config.action_dim, device=device)
        causal = torch.rand((), generator=generator).item() < c.causal_share
        frames = torch.stack([codes_BN, target_BN], 1)
        states = module(text_BL, frames, still, noisy, hidden, None, causal)
        batch_of = self._as_windows(batch, text_BL, frames, still)
        weight = 1 + (c.changed - 1) * (target_BN != codes_BN).float()[:, None]
        visual = self.dynamics.token_loss(
            module, states.noisy_BFND, target_BN[:, None], weight * self.dynamics.noise.counts(hidden)
        )
        text = self._caption_loss(module, states.text_BLD, caption_BS.to(device))
        state, error = self.dynamics.state_loss(module, batch_of, states.noisy_BFND)
        loss = c.visual * visual + c.text * text + c.position / self.dynamics.config.position * state
        figures = {"visual": visual.item(), "text": text.item(), "position": error}
        if causal:
            predicted = module.frame_predictions(states.clean_BFTD)
            token_by_token = self.dynamics.token_loss(module, predicted, target_BN[:, None], weight)
            loss, figures["causal"] = loss + c.causal * token_by_token, token_by_token.item()
        return loss, figures

    def _caption_loss(self, module: TokenModel, text_BLD: torch.Tensor, caption_BS: torch.Tensor) -> torch.Tensor:
        """Next-token loss of the captions."""
        length = caption_BS.shape[1]
        logits = module.transformer.lm_head(text_BLD[:, -length - 1 : -1]).transpose(1, 2).float()
        counted = (caption_BS != module.config.vocabulary.pad).sum().clamp(min=1)
        ignored = {"ignore_index": module.config.vocabulary.pad, "reduction": "sum"}
        return F.cross_entropy(logits, caption_BS, **ignored) / counted

    def _as_windows(self, batch: SubgoalBatch, text_BL, frames, still) -> WindowBatch:
        """The batch as windows of two frames, whose reward and success are not known."""
        device, zero = frames.device, frames.new_zeros(len(frames), 1, dtype=torch.float32)
        known = torch.tensor([0.0, 0.0, 1.0], device=device).expand(len(frames), 1, 3)
        places, present = batch.positions_BO2.to(device)[:, None], batch.present_BO.to(device)[:, None]
        return WindowBatch(text_BL, frames, frames[:, 1:], still, zero, zero, known, places, present)


def teach_subgoals(
    cache: FrameCache,
    rows: SubgoalRows,
    config: LanguageConfig,
    trajectory: TrajectoryConfig,
    loop: LoopConfig,
    source: Path,
    run: TrainingRun,
    *,
    held_out: int = 100,
    seed: int = 0,
) -> Path:
    """Trains a world model on to draw key frames from words, and writes `run.folder / checkpoint`.

    Its frame tokenizer stays. The text tokenizer is trained anew on the instructions and captions, and all but the text's
    embeddings starts from the source's weights; of a source that draws key frames already, all does, its text tokenizer and
    lengths too.

    Args:
        cache: the dataset; its last `held_out` episodes are left for evaluation.
        rows: of the others.
        config, trajectory, loop: of language, of the dynamics beside it, and of the optimisation.
        source: the world model's checkpoint folder.
        run: where.
        held_out, seed: as in `pipeline.Recipe`.

    Raises:
        DatasetError: too few episodes, or frames of another size.
        CheckpointError: the source is missing or damaged, or the run folder holds a state of other settings.
        ConfigError, InputError: as `SubgoalSampler`.
    """
    tokenizer, text, known, world, _ = load_checkpoint(source)
    check_cache(cache, held_out, tokenizer.config.image_size)
    check_scale(cache, world)
    settings = {"language": asdict(config), "loop": asdict(loop), "held_out": held_out, "seed": seed}
    trajectory = replace(trajectory, autoregressive_until=0.0)
    learns = {"trajectory": asdict(trajectory)} | settings | {"source": fingerprint(source)}
    facts, whole = facts_of("language", cache, learns | {"rows": _digest(rows)}), cache
    cache, _ = cache.split(held_out)
    torch.manual_seed(seed)
    if known.config.generates_subgoals:
        model = known.to(run.device)
    else:
        text = TextTokenizer.train([*rows.texts(), *cache.instructions], config.text_size)
        model = with_prompts(known, text, config).to(run.device)
    check_trajectories(whole, held_out, text, model.config, world)
    SubgoalSampler(rows, cache, torch.zeros(len(cache), 0), text, model, config, seed)  # whatever is wrong shows here

    def work() -> None:
        codes_FN = encode_frames(tokenizer.to(run.device), cache, run.report)
        dynamics = trajectory_objective(model, tokenizer, text, world, cache, codes_FN, trajectory, loop.steps, seed)
        sampler = SubgoalSampler(rows, cache, codes_FN, text, model, config, seed)
        trained = train_stage(
            "language",
            model,
            SubgoalObjective(sampler, dynamics, config, loop.steps),
            loop,
            run.folder,
            evaluate=run.judge(tokenizer, text),
            report=run.report,
        )
        words = {word for text in rows.texts() for word in text.split() if not word.isdecimal()}
        facts = {"episodes": cache.episodes, "frames": len(cache), "rows": len(rows), "words": sorted(words)} | learns
        save_checkpoint(run.folder / "checkpoint", tokenizer, text, trained, world, facts)

    return train_once(run, "checkpoint", facts, work)


def _digest(rows: SubgoalRows) -> str:
    """A SHA-256 of the rows' texts and numbers."""
    digest = hashlib.sha256()
    for name, value in sorted(vars(rows).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else json.dumps(value).encode())
    return digest.hexdigest()


@torch.no_grad()
def with_prompts(known: TokenModel, text: TextTokenizer, config: LanguageConfig) -> TokenModel:
    """A model with room for prompts and with the ids of another text tokenizer; the other weights are those of `known`."""
    old = known.config.vocabulary
    vocabulary = Vocabulary(text.size, old.codebook_size, old.action_bins)
    lengths = {"instruction_length": config.instruction_length, "caption_length": config.caption_length}
    model = TokenModel(
        replace(
            known.config,
            vocabulary=vocabulary,
            transformer=replace(known.config.transformer, vocab_size=vocabulary.size),
            text_length=sum(lengths.values()) + known.config.frame_tokens,
            **lengths,
        )
    )
    state = known.state_dict()
    tables = ("transformer.model.embed_tokens.weight", "transformer.lm_head.weight")
    fresh = model.state_dict()
    for name in tables:
        table = fresh[name].clone()
        table[vocabulary.pad :] = state[name][old.pad :]
        state[name] = table
    model.load_state_dict(state)
    return model
