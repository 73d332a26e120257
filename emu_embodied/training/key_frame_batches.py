"""Batches of key frames to draw, each with a sentence that asks for it. Knows no loss and no stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.subgoals import SubgoalRows
from emu_embodied.errors import ConfigError
from emu_embodied.model.token_model import TokenModel
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.types import short_repr
from emu_embodied.validation import number_fields

from .datasets import label_columns


@dataclass(frozen=True)
class LanguageConfig:
    """What the batches hold and what counts in them.

    Attributes:
        batch: key frames a step.
        share: of the steps that are language; the others are dynamics.
        text, visual, causal, position: weights of the captions' tokens, of the parallel prediction of key frames, of their
            prediction token by token, and of where things are in them. Those of action tokens and of the dynamics are the
            trajectory's.
        causal_share: of the language steps that train the prediction token by token.
        fully_hidden: share of key frames with every token hidden.
        changed: weight of tokens that differ from the frame before.
        unconditional: share of rows without an instruction and half as many without a caption, for classifier-free guidance.
        instruction_length, caption_length: of the padded texts.
        text_size: ids of the text tokenizer.
        groups: share of each group of rows in a batch.
        curriculum: share of the stage in which rows come by their distance, near ones first; 0 for none.
    """

    batch: int = 32
    share: float = 0.9
    text: float = 1.0
    visual: float = 1.0
    causal: float = 0.5
    position: float = 0.3
    causal_share: float = 0.2
    fully_hidden: float = 0.5
    changed: float = 6.0
    unconditional: float = 0.1
    instruction_length: int = 14
    caption_length: int = 20
    text_size: int = 640
    groups: dict[str, float] | None = None
    curriculum: float = 0.0

    def __post_init__(self) -> None:
        number_fields(self, dict.fromkeys(("share", "causal_share", "fully_hidden", "unconditional", "curriculum"), (0, 1)))


@dataclass(frozen=True)
class SubgoalBatch:
    """B key frames to draw.

    Attributes:
        instruction_BI, caption_BS: padded ids; the captions end with `<|end|>`.
        codes_BN, target_BN: the frame that is seen and the key frame.
        positions_BO2, present_BO: where things are in the key frame.
    """

    instruction_BI: torch.Tensor
    caption_BS: torch.Tensor
    codes_BN: torch.Tensor
    target_BN: torch.Tensor
    positions_BO2: torch.Tensor
    present_BO: torch.Tensor

    __repr__ = short_repr


class SubgoalSampler:
    """Draws rows, balanced over their groups, each with one of the sentences that ask for its goal.

    Args:
        rows: of `cache`.
        cache: the dataset; its pixels are not used.
        codes_FN: visual codes of every frame.
        text: the text tokenizer.
        model: gives the vocabulary, the lengths and the objects.
        config: shares and lengths.
        seed: batches are a function of (seed, step).

    Raises:
        ConfigError: a group that the rows have not.
        InputError: a text that is too long.
    """

    def __init__(
        self,
        rows: SubgoalRows,
        cache: FrameCache,
        codes_FN: torch.Tensor,
        text: TextTokenizer,
        model: TokenModel,
        config: LanguageConfig,
        seed: int,
    ) -> None:
        self.rows, self.codes, self.config, self.seed = rows, codes_FN, config, seed
        c = model.config
        sentences = [*(text for texts in rows.goals for text in texts), ""]
        self.sentences = text.batch(sentences, c.instruction_length, c.vocabulary.pad)
        counts = np.array([len(texts) for texts in rows.goals])
        self.first, self.many = (
            np.where(counts > 0, np.cumsum(counts) - counts, len(sentences) - 1),
            np.maximum(counts, 1),
        )
        self.captions = closed_captions(text, rows.captions, model)
        labels = cache.states[:, label_columns(cache.names["state"], c.objects)]
        self.places = torch.from_numpy(labels.reshape(len(cache), len(c.objects), 3))
        shares = dict(config.groups or {name: 1.0 for name in rows.groups})
        if unknown := set(shares) - set(rows.groups):
            raise ConfigError("language.groups", sorted(unknown), f"the rows have {rows.groups}")
        members = [np.flatnonzero(rows.group == i) for i in range(len(rows.groups))]
        ways = rows.target - rows.start
        self.members = [ids[np.argsort(ways[ids], kind="stable")] for ids in members]
        weight = np.array(
            [shares.get(name, 0.0) * (len(ids) > 0) for name, ids in zip(rows.groups, members, strict=True)]
        )
        self.weight = weight / weight.sum()

    def batch(self, step: int, progress: float) -> SubgoalBatch:
        """The batch of a step; `progress` in [0, 1] is how far the stage is."""
        c, rng = self.config, np.random.default_rng([self.seed, 3, step])
        group = rng.choice(len(self.members), c.batch, p=self.weight)
        reach = min(1.0, 0.3 + 0.7 * progress / c.curriculum) if c.curriculum else 1.0
        rows = np.array([self.members[g][int(rng.random() * max(1, len(self.members[g]) * reach))] for g in group])
        goal = self.rows.goal[rows]
        sentence = self.first[goal] + (rng.random(c.batch) * self.many[goal]).astype(np.int64)
        start, target = self.rows.start[rows], self.rows.target[rows]
        return SubgoalBatch(
            self.sentences[sentence],
            self.captions[self.rows.caption[rows]],
            self.codes[start].long(),
            self.codes[target].long(),
            self.places[target, :, :2],
            self.places[target, :, 2],
        )


def closed_captions(text: TextTokenizer, captions: tuple[str, ...], model: TokenModel) -> torch.Tensor:
    """Ids (k, S) of captions with `<|end|>` behind, padded.

    Raises:
        InputError: one that is too long.
    """
    length, v = model.config.caption_length, model.config.vocabulary
    ids_KS = F.pad(text.batch(captions, length - 1, v.pad), (0, 1), value=v.pad)
    ends = (ids_KS != v.pad).sum(1)
    ids_KS[torch.arange(len(captions)), ends] = v.end
    return ids_KS
