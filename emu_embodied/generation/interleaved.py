"""Interleaved text and images from a batch of prompts, as a stream of events. Knows ids, no tokenizer, no prompt's wording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F

from emu_embodied.errors import InputError
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.decoding.dida import open_after
from emu_embodied.inference.decoding.sampling import log_probs, sample
from emu_embodied.inference.ragged_kv_cache import Streams
from emu_embodied.model.transformer import Transformer
from emu_embodied.model.vocabulary import Emu35Vocabulary
from emu_embodied.types import short_repr

from .grammar import Grammar, GrammarConfig, Phase, block_length, mask_logits

SLOTS = 256  # visual slots whose logits are in memory at once: of a whole image they would take gigabytes


@dataclass(frozen=True)
class TextPiece:
    """Text ids, specials among them, that row `row` goes on with."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageBegun:
    """An image of height x width visual tokens begins."""

    row: int
    height: int
    width: int


@dataclass(frozen=True)
class ImageProgress:
    """So many of an image's visual tokens are decided: after each of its rows, or after each of its passes."""

    row: int
    decided: int
    slots: int


@dataclass(frozen=True)
class ImageFinished:
    """An image is whole: `codes_HW` (height, width) int64, on the CPU."""

    row: int
    codes_HW: torch.Tensor

    __repr__ = short_repr


@dataclass(frozen=True)
class Ended:
    """A row's last event. `reason`: "end" where the model chose EOS, "budget" where no room was left for anything else."""

    row: int
    reason: str


Event = TextPiece | ImageBegun | ImageProgress | ImageFinished | Ended


class NoisyEmbedder(Protocol):
    """What a DiDA-trained model adds to the embeddings; a `TokenModel` is one.

    Attributes:
        hidden_token: (D,), stands for a visual token that is not decided.
        noised: (D,), added to every slot of the image that is being drawn.
    """

    @property
    def hidden_token(self) -> torch.Tensor: ...
    @property
    def noised(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are drawn.

    Attributes:
        grammar: what an answer may hold, and its budget.
        text: temperature, top_k and top_p of text tokens and of the digits of an image's size.
        image: the same of visual tokens, their guidance, and `decoding`: "autoregressive", or "dida" with passes (at most
            one a slot), schedule and remask, in the order of confidence.
        context: tokens that the model was trained on; prompt and budget must fit.

    Raises:
        InputError: a way of decoding images that is not one of these.
    """

    grammar: GrammarConfig
    text: DecodingConfig = DecodingConfig()
    image: DecodingConfig = DecodingConfig(decoding="autoregressive")
    context: int = 32768

    def __post_init__(self) -> None:
        if self.image.decoding not in ("autoregressive", "dida"):
            raise InputError("image.decoding", self.image.decoding, "choose autoregressive or dida")
        if self.image.order != "confidence":
            raise InputError("image.order", self.image.order, "images are drawn in the order of confidence")


def generate(
    model: Transformer,
    vocabulary: Emu35Vocabulary,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    unconditional: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
    noisy: NoisyEmbedder | None = None,
) -> Iterator[Event]:
    """Answers a batch of prompts; what each row gets does not depend on the others, but for the noise that it is drawn with.

    With `config.image.guidance` s other than 1, visual tokens are drawn from `u + s (c - u)`: c the log-probabilities after
    the prompt and the answer so far, u those after the unconditional prompt and the answer's images so far, without its text.

    Args:
        model: in eval mode.
        vocabulary: whose ids the model knows.
        prompts: ids of each row.
        config: grammar and sampling.
        unconditional: ids of each row's unconditional prompt; needed for guidance.
        generator: of the noise.
        noisy: embeds an image's undecided slots; needed for DiDA.

    Returns:
        The events, as they come; all of a row's in order. At the end of each row stands one `Ended`.

    Raises:
        InputError: at once for prompts that are empty, hold unknown ids or leave no room for the budget, and for missing
            arguments; on the way for logits that are not finite.
    """
    return _Writer(model, vocabulary, prompts, config, unconditional, generator, noisy).events()


class _Writer:
    """The answers that are being written; row r's unconditional twin is stream B + r."""

    def __init__(self, model, vocabulary, prompts, config, unconditional, generator, noisy) -> None:
        images = config.grammar.images != 0
        self.guided = images and config.image.guidance != 1
        self.dida = images and config.image.decoding == "dida"
        if self.dida and noisy is None:
            raise InputError("noisy", None, "DiDA needs the embeddings of undecided tokens; or decode autoregressively")
        if self.guided and len(unconditional or ()) != len(prompts):
            raise InputError("unconditional", unconditional, f"guidance needs {len(prompts)} unconditional prompts")
        self.prompts = [list(ids) for ids in (*prompts, *(unconditional if self.guided else ()))]
        _check_prompts(self.prompts, model, vocabulary, config)
        self.model, self.vocabulary, self.config, self.generator, self.noisy = (
            model,
            vocabulary,
            config,
            generator,
            noisy,
        )
        self.rows = range(len(prompts))
        self.grammars = [Grammar.start(vocabulary, config.grammar) for _ in self.rows]
        self.codes: list[list[int]] = [[] for _ in self.rows]
        self.states: dict[int, torch.Tensor] = {}  # stream -> (D,) hidden state after its last token

    @torch.no_grad()
    def events(self) -> Iterator[Event]:
        capacity = max(map(len, self.prompts)) + self.config.grammar.budget
        self.streams = Streams(self.model, len(self.prompts), capacity)
        self._read(dict(enumerate(self.prompts)))
        yield from self._write({row: _forced(grammar) for row, grammar in enumerate(self.grammars)})
        while live := [row for row in self.rows if not self.grammars[row].ended]:
            drawn = [row for row in live if self.dida and self.grammars[row].before_block]
            sizes = {row: (self.grammars[row].height, self.grammars[row].width) for row in drawn}
            for size in sorted(set(sizes.values())):
                yield from self._sample_block([row for row in drawn if sizes[row] == size], *size)
            if written := [row for row in live if row not in drawn]:
                chosen = self._choose(written)
                yield from self._write({row: [t, *_forced(self.grammars[row].advance(t))] for row, t in chosen.items()})

    def _write(self, lines: dict[int, list[int]]) -> Iterator[Event]:
        """Appends tokens to answers, and lets the model read them."""
        unread = {}
        for row, tokens in lines.items():
            for token in tokens:
                before = self.grammars[row]
                self.grammars[row] = after = before.advance(token)
                yield from self._events_of(row, token, before, after)
                if after.ended:
                    break
                unread.setdefault(row, []).append(token)
                if self.guided and not (before.phase is after.phase is Phase.TEXT):
                    unread.setdefault(row + len(self.rows), []).append(token)
            if self.grammars[row].ended:
                unread = {stream: ids for stream, ids in unread.items() if stream % len(self.rows) != row}
        self._read(unread)

    def _read(self, lines: dict[int, list[int]]) -> None:
        if lines:
            self.states |= zip(lines, self.streams.read(list(lines), list(lines.values())), strict=True)

    def _events_of(self, row: int, token: int, before: Grammar, after: Grammar) -> Iterator[Event]:
        v = self.vocabulary
        if after.ended:
            yield Ended(row, "budget" if before.left == 1 else "end")
        elif before.phase is after.phase is Phase.TEXT:
            yield TextPiece(row, (token,))
        elif after.before_block:
            self.codes[row] = []
            yield ImageBegun(row, after.height, after.width)
        elif before.expects_visual:
            self.codes[row].append(token - v.visual_offset)
            if not self.dida and not after.expects_visual:
                yield ImageProgress(row, len(self.codes[row]), after.height * after.width)
        elif token == v.image_end:
            yield ImageFinished(row, torch.tensor(self.codes[row]).view(before.height, before.width))

    def _choose(self, rows: list[int]) -> dict[int, int]:
        """Draws the next token of each row."""
        chosen = {}
        visual = [row for row in rows if self.grammars[row].expects_visual]
        if visual:
            codes_R, _ = self._sample_codes(self._states(visual), self._states(self._twins(visual)))
            chosen |= zip(visual, (codes_R + self.vocabulary.visual_offset).tolist(), strict=True)
        if text := [row for row in rows if row not in chosen]:
            logits_RV = _finite(self.model.lm_head(self._states(text)))
            masked_RV = mask_logits(logits_RV, [self.grammars[row] for row in text])
            tokens_R, _ = sample(log_probs(masked_RV, self.config.text), self.config.text, self.generator)
            chosen |= zip(text, tokens_R.tolist(), strict=True)
        return chosen

    def _sample_block(self, rows: list[int], height: int, width: int) -> Iterator[Event]:
        """Draws the blocks of rows that stand behind IMG, all of one size, in parallel passes."""
        v, slots, streams = self.vocabulary, height * width, [*rows, *self._twins(rows)]
        config = replace(self.config.image, passes=min(self.config.image.passes, slots))
        place_N = torch.arange(slots, device=self.streams.device)
        place_N = place_N + place_N // width  # of the visual tokens in the block: an EOL after every row
        ids_RL = torch.full((len(rows), block_length(height, width)), v.end_of_line, device=place_N.device)
        ids_RL[:, place_N] = v.visual_offset
        open_RN = ids_RL.new_ones(len(rows), slots, dtype=torch.bool)
        sureness_RN = torch.zeros(open_RN.shape, device=place_N.device)
        first_S1D = self._states(streams)[:, None]
        for k in range(1, config.passes + 1):
            x_RLD = self._embed_noisy(
                ids_RL, torch.zeros_like(ids_RL, dtype=torch.bool).index_copy(1, place_N, open_RN)
            )
            seen_SLD = self.streams.peek(streams, x_RLD.repeat(len(streams) // len(rows), 1, 1))
            before_SND = torch.cat([first_S1D, seen_SLD[:, :-1]], 1)[:, place_N]  # the state before a slot predicts it
            conditional_RND, unconditional_RND = before_SND[: len(rows)], before_SND[len(rows) :]
            without = unconditional_RND[open_RN] if self.guided else unconditional_RND
            sampled_M, sure_M = self._sample_codes(conditional_RND[open_RN], without)
            ids_RL[:, place_N] = ids_RL[:, place_N].masked_scatter(open_RN, sampled_M + v.visual_offset)
            sureness_RN = sureness_RN.masked_scatter(open_RN, sure_M)
            stays_RN = sureness_RN if config.remask else sureness_RN.masked_fill(~open_RN, torch.inf)
            left = open_after(k, slots, config)
            open_RN = stays_RN.argsort(-1).argsort(-1) < left
            yield from (ImageProgress(row, slots - left, slots) for row in rows)
        yield from self._write({row: [*ids, v.image_end] for row, ids in zip(rows, ids_RL.tolist(), strict=True)})

    def _embed_noisy(self, ids_RL: torch.Tensor, hidden_RL: torch.Tensor) -> torch.Tensor:
        x_RLD = self.model.model.embed_tokens(ids_RL)
        return torch.where(hidden_RL[..., None], self.noisy.hidden_token.to(x_RLD), x_RLD) + self.noisy.noised.to(x_RLD)

    def _sample_codes(self, conditional_MD: torch.Tensor, unconditional_MD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (M,) and their log-probabilities, from the states before them; `unconditional_MD` is empty without guidance."""
        head, how, drawn = self.model.lm_head.weight[self.vocabulary.visual], self.config.image, []
        for start in range(0, len(conditional_MD), SLOTS):
            part = slice(start, start + SLOTS)
            scores_MV = _finite(F.linear(conditional_MD[part], head))
            if self.guided:
                u_MV = _finite(F.linear(unconditional_MD[part], head)).log_softmax(-1)
                scores_MV = u_MV + how.guidance * (scores_MV.log_softmax(-1) - u_MV)
            drawn.append(sample(log_probs(scores_MV, how), how, self.generator))
        codes, sureness = zip(*drawn, strict=True)
        return torch.cat(codes), torch.cat(sureness)

    def _twins(self, rows: list[int]) -> list[int]:
        return [row + len(self.rows) for row in rows] if self.guided else []

    def _states(self, streams: list[int]) -> torch.Tensor:
        """Hidden states (S, D) after the streams' last tokens."""
        return torch.stack([self.states[stream] for stream in streams]) if streams else torch.empty(0)


def _forced(grammar: Grammar) -> list[int]:
    """The tokens that must follow, up to the first that is chosen."""
    tokens = []
    while (token := grammar.forced) is not None:
        tokens.append(token)
        grammar = grammar.advance(token)
    return tokens


def _check_prompts(prompts: list[list[int]], model: Transformer, vocabulary: Emu35Vocabulary, config) -> None:
    size, budget = model.config.vocab_size, config.grammar.budget
    if size < vocabulary.size:
        raise InputError("vocabulary", vocabulary.size, f"the model knows {size} ids")
    if not prompts or not all(prompts):
        raise InputError("prompts", prompts, "give at least one prompt, and none that is empty")
    for ids in prompts:
        if min(ids) < 0 or max(ids) >= size:
            raise InputError("prompts", f"ids from {min(ids)} to {max(ids)}", f"the model knows 0 to {size - 1}")
        if len(ids) + budget > config.context:
            shown = f"{len(ids)} of a prompt and a budget of {budget}"
            raise InputError(
                "tokens",
                shown,
                f"together at most {config.context}: shorten one by {len(ids) + budget - config.context}",
            )


def _finite(logits: torch.Tensor) -> torch.Tensor:
    """Logits as float32.

    Raises:
        InputError: NaN or infinite ones.
    """
    logits = logits.float()
    if not torch.isfinite(logits).all():
        raise InputError("logits", "NaN or inf", "check the checkpoint and its dtype")
    return logits
