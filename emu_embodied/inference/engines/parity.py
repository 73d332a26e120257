"""Does an engine compute what the eager steps compute? The same codes, actions and noise through both. Knows no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from emu_embodied.inference.decoding.sampling import gumbel_noise
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.model.token_model import TokenModel
from emu_embodied.protocols import StepEngine
from emu_embodied.types import Proposal

from .static import StaticEngine

MARGIN = 0.05  # nats between the two best codes, below which half precision may choose the other


@dataclass(frozen=True)
class Parity:
    """How far an engine is from the eager steps.

    Attributes:
        equal: share of drawn codes that are the same.
        equal_clear: the same share where the two best codes are more than `MARGIN` apart.
        log_prob_error: largest difference of the log-probabilities of codes that were drawn by both.
        cosine: of the logits, the smallest over slots.
        drawn: codes compared.
        exact: the engine computes in float32, and is held to its bars.
    """

    equal: float
    equal_clear: float
    log_prob_error: float
    cosine: float
    drawn: int
    exact: bool

    @property
    def holds(self) -> bool:
        """float32: 99.99% equal codes, log-probabilities within 1e-4. Half: cosine 0.999, 99% where the choice is clear."""
        if self.exact:
            return self.equal >= 0.9999 and self.log_prob_error <= 1e-4
        return self.cosine >= 0.999 and self.equal_clear >= 0.99

    def __str__(self) -> str:
        return (
            f"{100 * self.equal:.2f}% of {self.drawn} codes equal, log-probabilities within {self.log_prob_error:.1e}, "
            f"cosine {self.cosine:.6f}"
        )


@torch.inference_mode()
def measure_parity(engine: FrameStep | StaticEngine, model: TokenModel, batch: int = 2, seed: int = 0) -> Parity:
    """Runs every step of both engines on random frames: two passes a frame, commits between, a draft, tokens one by one.

    Args:
        engine: to be measured.
        model: the float32 model that the eager engine runs.
        batch: B.
        seed: of frames, actions and noise.
    """
    eager, pairs, errors = FrameStep(model), [], []
    for ours, theirs in zip(_proposals(eager, model, batch, seed), _proposals(engine, model, batch, seed), strict=True):
        same = ours.codes == theirs.codes
        errors.append((ours.log_prob - theirs.log_prob)[same].abs().max().item() if same.any() else float("inf"))
        best = (ours.logits.float()).topk(2, -1).values
        clear = best[..., 0] - best[..., 1] > MARGIN
        cosine = torch.cosine_similarity(ours.logits.double(), theirs.logits.double(), dim=-1).min()
        pairs.append((same.flatten(), clear.flatten(), cosine))
    same, clear = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    return Parity(
        equal=same.double().mean().item(),
        equal_clear=same[clear].double().mean().item() if clear.any() else 1.0,
        log_prob_error=max(errors),
        cosine=min(pair[2].item() for pair in pairs),
        drawn=same.numel(),
        exact=engine.model.noised.dtype == torch.float32,
    )


def _proposals(engine: StepEngine, model: TokenModel, batch: int, seed: int) -> Iterator[Proposal]:
    """What an engine says on frames that do not depend on it."""
    c, place, g = model.config, model.noised.device, torch.Generator().manual_seed(seed)
    frames, known, size = c.context_frames + 3, max(1, c.context_frames), c.vocabulary.codebook_size
    codes = torch.randint(0, size, (frames, batch, c.slots), generator=g).to(place)
    actions = (torch.rand(frames, batch, c.action_dim, generator=g) * 2 - 1).to(place)
    text = torch.randint(0, c.vocabulary.text_size, (batch, c.text_length), generator=g).to(place)
    hidden = (torch.rand(batch, c.slots, generator=g) < 0.5).to(place)
    noise = gumbel_noise((batch, c.slots, size), actions, g)
    cache = engine.prefill(text, codes[:known].transpose(0, 1), actions[: known - 1].transpose(0, 1), ahead=3)
    for t in range(known, known + 2):
        for opened, gumbel in ((torch.ones_like(hidden), None), (hidden, noise)):
            yield engine.denoise(cache, actions[t], codes[t], opened, 1.0, gumbel)
        engine.commit(cache, actions[t], codes[t])
    t = known + 2 if known + 2 < frames else frames - 1
    logits, states = engine.verify(cache, actions[t], codes[t])
    drawn = logits.float().log_softmax(-1)
    best = drawn.argmax(-1)
    yield Proposal(best, drawn.gather(-1, best[..., None])[..., 0], drawn[..., 0], states, logits)
    source = engine.frame_source(cache, actions[t])
    for index in range(c.slots):
        before = codes[t][:, index - 1] if index else None
        yield engine.next_token(cache, actions[t], index, before, source, 1.0, noise[:, index])
