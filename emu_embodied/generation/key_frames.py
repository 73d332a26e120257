"""Key frames from words: captions token by token, frames by DiDA or token by token. Knows no world, and no template.

Given an instruction and a frame, the model writes what happens next and draws the key frame at its end, then goes on from
there, until it writes that it is done: Emu3.5's visual guidance (arXiv 2510.26583), with the sequence
`instruction | frame | caption | key frame`. Every step sees only the last frame, so that a chain may be as long as one likes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from emu_embodied.errors import InputError
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.decoding.guidance import GuidedCache, GuidedEngine
from emu_embodied.inference.decoding.sampling import log_probs, sample
from emu_embodied.inference.ragged_kv_cache import Streams
from emu_embodied.model.noise import WorldNoise
from emu_embodied.protocols import StepEngine
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.types import DONE, History, Observation, Subgoal
from emu_embodied.validation import check_seed, derived_seed, whole_fields, whole_number
from emu_embodied.world_model import TokenWorldModel

LONGEST = 400  # characters of an instruction
MOST = 32  # key frames of a chain


@dataclass(frozen=True)
class SubgoalDecoding:
    """How chains are drawn.

    Attributes:
        frames: decoding of the key frames; its guidance is away from the frame without words.
        caption: temperature, top_k and top_p of the captions' tokens.
        samples: chains that are drawn side by side; the likeliest is proposed.
        again: temperature of captions and key frames of `TokenSubgoals.again`.

    Raises:
        InputError: less than one sample.
    """

    frames: DecodingConfig = DecodingConfig()
    caption: DecodingConfig = DecodingConfig()
    samples: int = 1
    again: float = 0.5

    def __post_init__(self) -> None:
        whole_fields(self, {"samples": (1, 256)}, InputError)


class _UnconditionalEngine(GuidedEngine):
    """Guidance away from the frame without words: the unconditional past is the prompt without instruction and caption."""

    def __init__(self, engine: StepEngine, scale: float, words_L: torch.Tensor, pad: int) -> None:
        super().__init__(engine, scale, torch.full_like(words_L, pad, dtype=torch.long))
        self.words_L = words_L

    def prefill(self, text_BL, codes_BCN, actions_BCA, ahead: int) -> GuidedCache:
        texts = (text_BL, torch.where(self.words_L, self.empty_L, text_BL))
        return GuidedCache(*(self.engine.prefill(text, codes_BCN, actions_BCA, ahead) for text in texts))


class TokenSubgoals:
    """Draws chains of key frames with a token model; implements `protocols.SubgoalProposer`.

    Args:
        world_model: of a checkpoint that learnt it (`train stage=language`), decoded without guidance.
        words: that the model was taught; empty where any are taken.
        config: how chains are drawn.

    Raises:
        InputError: a model that did not learn it.
    """

    def __init__(
        self, world_model: TokenWorldModel, words: Collection[str] = (), config: SubgoalDecoding | None = None
    ) -> None:
        self.config, self.words = config or SubgoalDecoding(), frozenset(words)
        self._plain = world_model
        self.model, text, self.objects = world_model.model, world_model.text, world_model.objects
        self.image_size, c = world_model.image_size, world_model.model.config
        if not c.generates_subgoals or not isinstance(text, TextTokenizer):
            raise InputError("checkpoint", "a world model without captions", "train it with stage=language first")
        self.text, frames, engine = text, self.config.frames, world_model.engine
        if frames.guidance != 1:
            place = torch.arange(c.text_length, device=world_model.device)
            words_L = (place < c.instruction_length) | (place >= c.text_length - c.caption_length)
            engine = _UnconditionalEngine(engine, frames.guidance, words_L, c.vocabulary.pad)
        parts = (world_model.tokenizer, world_model.text, world_model.model, world_model.world)
        self.world_model = TokenWorldModel(
            *parts, decoding=replace(frames, guidance=1.0), engine=engine, name=world_model.name
        )

    @functools.cached_property
    def again(self) -> TokenSubgoals:
        """Draws warmly, with the same weights: for those who do not like what was drawn first."""
        warm = {"temperature": self.config.again}
        frames, caption = (replace(how, **warm) for how in (self.config.frames, self.config.caption))
        return TokenSubgoals(self._plain, self.words, replace(self.config, frames=frames, caption=caption))

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """Key frames on the way from what is seen to what the instruction asks for.

        Args:
            observation: the frame and the instruction.
            count: most key frames.
            seed: of the noise; the same seed draws the same, and 0 with one sample the likeliest caption.

        Returns:
            At most `count`; none where the model believes it done. The last has `last` where the model says so.

        Raises:
            InputError: an instruction that is empty, too long, of unknown words or about an object that is not seen; a frame of
                another shape; a count below 1.
        """
        return max(self.chains(observation, count, seed), key=likelihood)

    def chains(
        self, observation: Observation, count: int = 4, seed: int = 0, on_caption: Callable[[str], None] | None = None
    ) -> list[list[Subgoal]]:
        """All `config.samples` chains that `propose` chooses among; `on_caption` gets the first one's growing captions."""
        instruction = self.check(observation)
        return self._chains(observation.pixels, instruction, count, seed, True, on_caption)

    def edit(self, observation: Observation, seed: int = 0) -> Subgoal:
        """The picture in which the instruction ("make the red cube be at the left edge") is done, in one step.

        Raises:
            InputError: see `propose`.
        """
        chains = self._chains(observation.pixels, self.check(observation), 1, seed, False)
        return max(chains, key=likelihood)[0]

    def go_on(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """What may come next where nothing is asked for; the observation's instruction is not read."""
        return max(self._chains(observation.pixels, "", count, seed, False), key=likelihood)

    def look(self, pixels: np.ndarray) -> np.ndarray:
        """Where the model sees things in a frame: (O, 3) float32, x, y in world units and presence."""
        codes_BN = self._codes(pixels, 1)
        return self._draw(self._ids([""]), codes_BN, self._closed([self.text.encode(DONE)]))[1][0]

    def strangeness(self, pixels: np.ndarray) -> float:
        """How far a frame (H, W, 3) uint8 is from what its tokens give back: the mean difference, of 255.

        Of scenes of a shipped checkpoint's world it is below 6, below 12 from a camera that was moved, and above 28 of noise,
        of a single colour, of other worlds, and of a table of another colour. Where things are believed to be means
        nothing there: a network that never saw noise sees red cubes in it.
        """
        drawn = self.world_model.decode(self._codes(pixels, 1))[0]
        return float(np.abs(drawn.astype(np.int16) - pixels).mean())

    def check(self, observation: Observation) -> str:
        """The instruction as the model is given it, in small letters and without a full stop.

        Raises:
            InputError: see `propose`.
        """
        if not isinstance(observation, Observation):
            raise InputError("observation", type(observation).__name__, "give an Observation")
        instruction = observation.instruction
        if not isinstance(instruction, str) or not instruction.strip():
            raise InputError("instruction", instruction, 'say what is to be done, like "push the red cube to the left"')
        if len(instruction) > LONGEST:
            found = f"{instruction[:40]}... of {len(instruction)} characters"
            raise InputError("instruction", found, f"give at most {LONGEST}")
        words = instruction.lower().replace(",", " ").rstrip(". !").split()
        if unknown := [word for word in words if self.words and word not in self.words]:
            rule = f"the model was trained without the words {unknown}; it knows {sorted(self.words)}"
            raise InputError("instruction", instruction, rule)
        plain = " ".join(words)
        self._ids([plain])
        seen = dict(zip(self.objects, self.look(observation.pixels)[:, 2], strict=True))
        if missing := [word for word in words if seen.get(word, 1.0) < 0.5]:
            there = [name for name, presence in seen.items() if presence >= 0.5]
            raise InputError("instruction", instruction, f"the model sees no {missing[0]} thing in this frame, only {there}")
        return plain

    @torch.inference_mode()
    def _chains(self, pixels, instruction: str, count: int, seed: int, heed: bool, on_caption=None) -> list[list[Subgoal]]:
        """`samples` chains from one frame; a caption that says "done" ends one where that is heeded."""
        count, samples = whole_number("count", count, 1, MOST, InputError), self.config.samples
        seeds = _seeds(check_seed(seed), samples)
        chains: list[list[Subgoal]] = [[] for _ in range(samples)]
        live, codes_BN, ids_BI = list(range(samples)), self._codes(pixels, samples), self._ids([instruction])
        noise = WorldNoise(seeds)
        for _ in range(count + heed):
            shown = on_caption if 0 in live else None
            captions, sure = self._captions(ids_BI.expand(len(live), -1), codes_BN, [seeds[i] for i in live], shown)
            before = [chains[i][-1].caption if chains[i] else "" for i in live]
            stuck = [i for i, caption in enumerate(captions) if repeats(self.text.decode(caption), before[i])]
            if stuck:  # nothing would come of it: what else is there to say?
                barred = [captions[i][0] for i in stuck]
                their = [seeds[live[i]] for i in stuck]
                anew = self._captions(ids_BI.expand(len(stuck), -1), codes_BN[stuck], their, None, barred)
                for i, caption, sureness in zip(stuck, *anew, strict=True):
                    captions[i], sure[i] = caption, sureness
            going = [i for i, caption in enumerate(captions) if not (heed and self.text.decode(caption) == DONE)]
            for i in set(range(len(live))) - set(going):
                if chains[live[i]]:
                    chains[live[i]][-1] = replace(chains[live[i]][-1], last=True)
            if not going or len(chains[live[going[0]]]) == count:
                break
            live, written = [live[i] for i in going], [captions[i] for i in going]
            words = ids_BI.expand(len(live), -1)
            codes_BN, places, frame_sure = self._draw(words, codes_BN[going], self._closed(written), noise.select(live))
            for row, frame in enumerate(self.world_model.decode(codes_BN)):
                log_prob = (sure[going[row]] + frame_sure[row]) / 2
                drawn = (frame, places[row], float(log_prob), False, codes_BN[row])
                chains[live[row]].append(Subgoal(self.text.decode(written[row]), *drawn))
        return chains

    def _captions(self, ids_BI, codes_BN, seeds, on_caption, barred=()) -> tuple[list[list[int]], list[float]]:
        """Ids of each row's next caption, without its end, and their mean log-probabilities; nothing but text and the end.

        `seeds` are of the rows' noise, `barred` ids that their captions may not begin with.
        """
        c, v, how = self.model.config, self.model.config.vocabulary, self.config.caption
        nothing = codes_BN.new_full((len(codes_BN), c.caption_length), v.pad)
        prompt_BP = self.model.prompt(ids_BI, codes_BN, nothing)[:, : -c.caption_length]
        streams, rows = Streams(self.model.transformer, len(codes_BN), c.text_length), list(range(len(codes_BN)))
        states = dict(zip(rows, streams.read(rows, prompt_BP.tolist()), strict=True))
        captions: list[list[int]] = [[] for _ in rows]
        sums, noise = [0.0] * len(rows), WorldNoise(seeds)
        while rows:
            logits_RV = self.model.transformer.lm_head(torch.stack([states[row] for row in rows])).float()
            allowed = torch.zeros(logits_RV.shape[1], dtype=torch.bool, device=logits_RV.device)
            allowed[: v.text_size], allowed[v.end] = len(captions[rows[0]]) < c.caption_length - 1, True
            logits_RV = logits_RV.masked_fill(~allowed, -torch.inf)
            if barred and not captions[rows[0]]:
                logits_RV[rows, barred] = -torch.inf
            scores_RV = log_probs(logits_RV, how)
            tokens_R, sure_R = sample(scores_RV, how, noise.select(rows))
            self.world_model.require_finite(caption=sure_R)
            written = dict(zip(rows, tokens_R.tolist(), strict=True))
            for row, sure in zip(rows, sure_R.tolist(), strict=True):
                sums[row] += sure
            rows = [row for row in rows if written[row] != v.end]
            for row in rows:
                captions[row].append(written[row])
            if on_caption and 0 in rows:
                on_caption(self.text.decode(captions[0]))
            if rows:
                states |= zip(rows, streams.read(rows, [[written[row]] for row in rows]), strict=True)
        return captions, [total / (len(ids) + 1) for total, ids in zip(sums, captions, strict=True)]

    @torch.inference_mode()
    def _draw(
        self, ids_BI, codes_BN, caption_BS, noise: WorldNoise | None = None
    ) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
        """Key frames (B, N), where things are in them (B, O, 3), and the tokens' mean log-probabilities (B,) one by one."""
        still = codes_BN.new_zeros(len(codes_BN), 1, 1, self.model.config.action_dim, dtype=torch.float32)
        text_BL = self.model.prompt(ids_BI, codes_BN, caption_BS)
        history = History(codes_BN[:, None], still[:, 0, :0], text_BL)
        rollout = self.world_model.rollout(history, still, noise)
        sampled_BN = rollout.codes_BSTN[:, 0, 0]
        places = torch.cat([rollout.positions_BSTOD[:, 0, 0], rollout.presence_BSTO[:, 0, 0, :, None]], -1)
        parts = []  # no more at once than are imagined at once
        for some in torch.arange(len(codes_BN), device=codes_BN.device).split(self.world_model.chunk):
            past, engine = history.select(some), self.world_model.engine
            cache = engine.prefill(past.text_BL, past.codes_BCN, past.actions_BCA, ahead=1)
            logits_MNV, _ = engine.verify(cache, still[some, 0, 0], sampled_BN[some])
            parts.append(logits_MNV.float().log_softmax(-1).gather(-1, sampled_BN[some][..., None])[..., 0])
        sure_BN = torch.cat(parts)
        self.world_model.require_finite(likelihood=sure_BN)
        return sampled_BN, places.float().cpu().numpy(), sure_BN.mean(-1).cpu()

    def _codes(self, pixels: np.ndarray, copies: int) -> torch.Tensor:
        """A frame's codes, so many times: (copies, N)."""
        seen = Observation(pixels, np.zeros(self.world_model.agent_dim, np.float32))
        return self.world_model.encode([seen]).codes_BCN[:, -1].expand(copies, -1)

    def _ids(self, texts: Sequence[str]) -> torch.Tensor:
        c = self.model.config
        return self.text.batch(texts, c.instruction_length, c.vocabulary.pad).to(self.world_model.device)

    def _closed(self, captions: Sequence[Sequence[int]]) -> torch.Tensor:
        """Captions (B, S) with their ends, padded."""
        v, length = self.model.config.vocabulary, self.model.config.caption_length
        rows = [[*ids, v.end, *[v.pad] * (length - len(ids) - 1)] for ids in captions]
        return torch.tensor(rows, device=self.world_model.device)


def _seeds(seed: int, samples: int) -> list[int]:
    """Of the chains' noise: the first has the seed itself, so that it is the same however many others there are."""
    return [seed, *(derived_seed(seed, i) for i in range(1, samples))]


def likelihood(chain: Sequence[Subgoal]) -> float:
    """By which chains are compared: the mean log-probability of their tokens; of one without key frames 0."""
    return sum(subgoal.log_prob for subgoal in chain) / max(len(chain), 1)


def repeats(caption: str, before: str) -> bool:
    """Whether a caption repeats the one before it: the same words, and numbers that are at most 2 apart."""
    now, then = caption.split(), before.split()
    pairs = zip(now, then, strict=False)
    return len(now) == len(then) > 0 and all(
        abs(int(one) - int(other)) <= 2 if one.isdecimal() and other.isdecimal() else one == other
        for one, other in pairs
    )
