"""TokenWorldModel: observations and actions in, imagined frames out. Puts tokenizers, token model and decoding together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.inference.decoding import autoregressive, dida, exact
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.decoding.guidance import GuidedEngine
from emu_embodied.inference.decoding.sampling import entropy
from emu_embodied.inference.frame_step import FrameStep, soft_step
from emu_embodied.labels import knows
from emu_embodied.model.noise import WorldNoise, make_noise
from emu_embodied.model.state_heads import StateEstimate
from emu_embodied.model.token_model import TokenModel
from emu_embodied.protocols import StepEngine, TextEncoder, World
from emu_embodied.tokenizers.frames import FrameTokenizer
from emu_embodied.tokenizers.ibq_frames import IBQFrames
from emu_embodied.types import History, Observation, Rollout
from emu_embodied.validation import check_seed, frame_of, numbers_of, whole_number


class TokenWorldModel:
    """A world model over tokens; implements `protocols.WorldModel`.

    Args:
        tokenizer, text, model: the trained parts, in eval mode and on one device.
        world: names and scales (`checkpoint.World`).
        decoding: how frames are decoded.
        engine: executes the model's steps; eager by default.
        seed: of the sampling noise; see `seed`.
        chunk: most dreams (B x S) that are imagined at once; more are done in turn, which keeps memory and caches small. By
            default 16 on the CPU, whose caches then hold a layer's states, and 1,024 elsewhere, or what the engine takes.
        name: of the checkpoint, for errors about its weights.

    Raises:
        InputError: more passes than a frame has tokens, or a seed or chunk that is no whole number of its range.
    """

    def __init__(
        self,
        tokenizer: FrameTokenizer | IBQFrames,
        text: TextEncoder,
        model: TokenModel,
        world: World,
        *,
        decoding: DecodingConfig | None = None,
        engine: StepEngine | None = None,
        seed: int = 0,
        chunk: int | None = None,
        name: str = "checkpoint",
    ) -> None:
        decoding = decoding or DecodingConfig()
        if decoding.passes > model.config.slots:
            raise InputError(
                "passes", decoding.passes, f"choose K from 1 to {model.config.slots}, the tokens of a frame"
            )
        self.tokenizer, self.text, self.model, self.world = tokenizer.eval(), text, model.eval(), world
        self.name = name
        self.engine: StepEngine = engine or FrameStep(model)
        self.decoding = decoding
        if decoding.guidance != 1:
            empty_L = text.batch([""], model.config.text_length, model.config.vocabulary.pad)[0]
            self.engine = GuidedEngine(self.engine, decoding.guidance, empty_L.to(model.noised.device))
        self.noise = make_noise(model.config.noise, tokenizer.places())
        self.image_size = tokenizer.config.image_size
        self.action_dim = model.config.action_dim
        self.agent_dim = 2 if model.config.objects and knows(self, "positions") else 0
        self.objects, self.context_frames = model.config.objects, max(1, model.config.context_frames)
        self.tokens_per_frame, self.text_size = model.config.slots, model.config.vocabulary.text_size
        self.device = model.noised.device
        most = self.engine.largest_batch or 1024
        self.chunk = min(16 if self.device.type == "cpu" else 1024, most) if chunk is None else chunk
        whole_number("chunk", self.chunk, 1, error=InputError)
        self._draws = bool(decoding.temperature or decoding.order == "random" or model.config.noise != "absorbing")
        self.generator = torch.Generator(self.device)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restarts the sampling noise of who gives no seeds of their own; greedy decoding has none.

        Raises:
            InputError: a seed that is no whole number of at least 0.
        """
        self.generator.manual_seed(check_seed(seed))

    @torch.inference_mode()
    def encode(self, observations: Sequence[Observation]) -> History:
        """Starts B histories, each from one observation: the frame, doubled, with zero actions between.

        Raises:
            InputError: no observations, pixels of another shape or dtype, or an `agent_pos` that is not `agent_dim` finite
                numbers (any number of them where the model does not know its robot's place).
        """
        codes_BN = self._codes(observations)
        text_BL = self.text.batch(
            [o.instruction for o in observations], self.model.config.text_length, self.model.config.vocabulary.pad
        ).to(self.device)
        frames = self.context_frames
        actions = torch.zeros(len(codes_BN), frames - 1, self.action_dim, device=self.device)
        return History(codes_BN[:, None].repeat(1, frames, 1), actions, text_BL)

    @torch.inference_mode()
    def observe(self, history: History, actions: np.ndarray, observations: Sequence[Observation]) -> History:
        """Appends what really happened: actions (B, A) in [-1, 1] and the observations they led to.

        Raises:
            InputError: wrong shapes, dtypes, ranges or non-finite values.
        """
        _check_history(history)
        codes_BN = self._codes(observations)
        return history.push(self._actions(actions, (len(history), self.action_dim)), codes_BN)

    def step(
        self, history: History, actions: np.ndarray, seeds: Sequence[int] | None = None
    ) -> tuple[History, Rollout]:
        """Imagines one step of each world from actions (B, A); returns the grown history and a rollout with S = T = 1.

        `seeds` are as for `rollout`.
        """
        _check_history(history)
        actions_BA = self._actions(actions, (len(history), self.action_dim))
        rollout = self.rollout(history, actions_BA[:, None, None], seeds)
        return history.push(actions_BA, rollout.codes_BSTN[:, 0, 0]), rollout

    @torch.inference_mode()
    def rollout(
        self, history: History, actions: np.ndarray | torch.Tensor, seeds: Sequence[int] | WorldNoise | None = None
    ) -> Rollout:
        """Imagines the futures of actions (B, S, T, A) in [-1, 1]; the S candidates of a world share its prefix.

        Args:
            history: of B worlds.
            actions: of S candidates for each.
            seeds: of each world's sampling noise in this call, or the noise itself where it goes on from call to call: so that
                no world changes with its neighbours; by default all worlds go on with the model's own.

        Raises:
            InputError: actions of another shape or dtype, out of range or not finite, or another number of seeds.
            CheckpointError: weights that give an estimate which is not finite.
        """
        _check_history(history)
        actions_BSTA = self._actions(actions, (len(history), None, None, self.action_dim))
        noise = self._noise(seeds, len(history))
        parts = []
        for first in range(0, len(history), self.chunk):
            worlds = slice(first, first + self.chunk)
            own = noise.select(range(len(history))[worlds]) if isinstance(noise, WorldNoise) else noise
            parts.append(self._futures(history.select(worlds), actions_BSTA[worlds], own))
        return self._rollout(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def require_finite(self, **estimates: torch.Tensor) -> None:
        """Refuses estimates that are not finite, whatever they are of: finite weights can give them.

        Raises:
            CheckpointError: one of them; it names the checkpoint and the estimate.
        """
        fine = torch.stack([torch.isfinite(x).all() for x in estimates.values()])
        if not fine.all():  # one wait for the device
            wrong = next(name for name, good in zip(estimates, fine.tolist(), strict=True) if not good)
            remedy = "its weights give no numbers here: take another checkpoint, or train it again"
            raise CheckpointError(f"{self.name}: {wrong}", "NaN or inf", remedy)

    def _rollout(self, codes, reward, success, positions, presence, entropy) -> Rollout:
        """What was dreamt, checked; success and presence come as logits."""
        heads = {"positions": positions, "presence": presence, "reward": reward, "success": success}  # as they depend
        self.require_finite(entropy=entropy, **heads)  # once: a captured frame cannot tell
        return Rollout(codes, reward, success.sigmoid(), positions, presence.sigmoid(), entropy)

    def soft_rollout(self, history: History, actions: torch.Tensor) -> Rollout:
        """Imagines futures whose estimates have a gradient by the actions (B, S, T, A); implements `protocols.SoftWorldModel`.

        Each frame is one parallel pass, eager, and what follows sees the expected embeddings of its tokens instead of drawn
        ones. The past is the last C frames, read anew each step.

        Args:
            history: of B worlds.
            actions: (B, S, T, A) in [-1, 1], which may require a gradient.

        Raises:
            InputError: as `rollout`; or a model that was not trained with hidden tokens.
            CheckpointError: as `rollout`.
        """
        _check_history(history)
        actions_BSTA = self._actions(actions, (len(history), None, None, self.action_dim))
        if self.model.config.noise != "absorbing":
            rule = "soft futures need a model trained with hidden tokens (absorbing)"
            raise InputError("noise", self.model.config.noise, rule)
        batch, candidates, _, _ = actions_BSTA.shape
        with torch.inference_mode(False):  # what was made in it cannot be part of a gradient
            text_ML, codes_MCN, past_MCA = (
                x.clone().repeat_interleave(candidates, 0)
                for x in (history.text_BL, history.codes_BCN, history.actions_BCA)
            )
            past = (x.split(self.chunk) for x in (text_ML, codes_MCN, past_MCA, actions_BSTA.flatten(0, 1)))
            parts = [self._soft_dream(*some) for some in zip(*past, strict=True)]
        columns = (torch.cat(column).unflatten(0, (batch, candidates)) for column in zip(*parts, strict=True))
        return self._rollout(*columns)

    def _soft_dream(self, text_ML, codes_MCN, past_MCA, actions_MTA) -> tuple[torch.Tensor, ...]:
        """`_dream` with soft frames: the same columns, (M, T, ...)."""
        probs_MCNV = F.one_hot(codes_MCN, self.model.config.vocabulary.codebook_size).float()
        rows: list[tuple[torch.Tensor, ...]] = []
        for actions_MA in actions_MTA.unbind(1):
            past_MCA = torch.cat([past_MCA, actions_MA[:, None]], 1)
            logits_MNV, hidden = soft_step(self.model, text_ML, probs_MCNV, past_MCA)
            log_probs_MNV = logits_MNV.float().log_softmax(-1)
            probs_MNV, codes_MN = log_probs_MNV.exp(), log_probs_MNV.argmax(-1)
            state = self.model.estimate(hidden, text_ML, through=True)
            estimates = (state.reward, state.success, state.positions, state.presence)
            rows.append((codes_MN, *estimates, entropy(log_probs_MNV).mean(-1)))
            probs_MCNV = torch.cat([probs_MCNV, probs_MNV[:, None]], 1)[:, 1:]
            past_MCA = past_MCA[:, 1:]
        return tuple(torch.stack(column, 1) for column in zip(*rows, strict=True))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Renders visual codes (..., N) as frames (..., H, W, 3) uint8.

        Raises:
            InputError: other than int64, another N, or codes that the tokenizer does not have.
        """
        size, slots = self.tokenizer.config.codebook_size, self.tokens_per_frame
        whole = isinstance(codes, torch.Tensor) and codes.dtype == torch.int64
        if not whole or not codes.ndim or codes.shape[-1] != slots:
            found = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, torch.Tensor) else type(codes).__name__
            raise InputError("codes", found, f"give an int64 tensor of shape (..., {slots})")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise InputError("codes", f"{int(codes.min())} to {int(codes.max())}", f"give codes from 0 to {size - 1}")
        flat = codes.reshape(-1, slots)
        with self._named():
            frames = torch.cat([self.tokenizer.decode(part).cpu() for part in flat.split(256)])
        return frames.numpy().reshape(*codes.shape[:-1], *frames.shape[1:])

    def agent_pos(self, rollout: Rollout) -> np.ndarray:
        """The robot's own position (B, S, T, 2) float32 in world units: the first of `objects`; (B, S, T, 0) without any."""
        return rollout.positions_BSTOD[..., :1, :].flatten(-2)[..., : self.agent_dim].cpu().numpy()

    def _futures(self, history: History, actions_BSTA: torch.Tensor, noise) -> list[torch.Tensor]:
        """A rollout's columns (B, S, T, ...) for no more worlds than are imagined at once."""
        batch, _, steps, _ = actions_BSTA.shape
        cache = self.engine.prefill(history.text_BL, history.codes_BCN, history.actions_BCA, ahead=steps)
        parts, most = [], max(1, self.chunk // batch)
        for first, some in enumerate(actions_BSTA.split(most, dim=1)):
            rows = range(first * most, first * most + some.shape[1])
            own = noise.futures(rows) if isinstance(noise, WorldNoise) else noise
            dreamt = self._dream(cache.expand(some.shape[1]), some.flatten(0, 1), own)
            parts.append([x.unflatten(0, (batch, -1)) for x in dreamt])
        return [torch.cat(pieces, 1) for pieces in zip(*parts, strict=True)]

    def _noise(self, seeds: Sequence[int] | WorldNoise | None, worlds: int) -> torch.Generator | WorldNoise:
        """What draws in a call: the worlds' own generators, where something is drawn and they have seeds."""
        if seeds is None:
            return self.generator
        if not isinstance(seeds, WorldNoise | Sequence | np.ndarray):
            raise InputError("seeds", seeds, f"give a list of {worlds} whole numbers")
        noise = seeds if isinstance(seeds, WorldNoise) else WorldNoise([check_seed(seed) for seed in seeds])
        if len(noise.seeds) != worlds:
            raise InputError("seeds", f"{len(noise.seeds)} of them", f"give one for each of {worlds} worlds")
        return noise if self._draws else self.generator  # whom engines know how to capture; it is not asked

    def _dream(self, cache, actions_BTA: torch.Tensor, noise) -> tuple[torch.Tensor, ...]:
        """Codes, rewards, positions, entropy and the logits of success and presence of each step, (B, T, ...)."""
        steps, text_BL = actions_BTA.shape[1], cache.text_BL
        method = {"dida": dida, "exact": exact, "autoregressive": autoregressive}[self.decoding.decoding]
        decode = self.engine.whole_frame(method.decode_frame)
        rows: list[tuple[torch.Tensor, ...]] = []
        for t in range(steps):
            with self._named():
                codes, hidden, entropy = decode(self.engine, cache, actions_BTA[:, t], self.decoding, noise, self.noise)
            state: StateEstimate = self.model.estimate(hidden, text_BL)
            rows.append((codes, state.reward, state.success, state.positions, state.presence, entropy))
        return tuple(torch.stack(column, 1) for column in zip(*rows, strict=True))

    def _codes(self, observations: Sequence[Observation]) -> torch.Tensor:
        size = (self.image_size, self.image_size, 3)
        if not isinstance(observations, Sequence) or not all(isinstance(o, Observation) for o in observations):
            raise InputError("observations", type(observations).__name__, "give a list of Observation")
        if not observations:
            raise InputError("observations", "none", "give at least one")
        frames = np.stack([frame_of("pixels", observation.pixels, size) for observation in observations])
        for observation in observations:
            agent = numbers_of("agent_pos", observation.agent_pos)
            if agent.ndim != 1 or self.agent_dim not in (0, len(agent)):
                raise InputError("agent_pos", f"shape {agent.shape}", f"give {self.agent_dim or 'a vector of'} numbers")
            if not isinstance(observation.instruction, str):
                raise InputError("instruction", observation.instruction, "give the task as text")
        with self._named():
            parts = [self.tokenizer.encode(some.to(self.device)) for some in torch.from_numpy(frames).split(256)]
        return torch.cat(parts)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Adds the checkpoint's name to what those say of its weights who do not know it."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error.field}", error.value, error.remedy) from None

    def _actions(self, actions: np.ndarray | torch.Tensor, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Checks actions once, at the boundary, and moves them to the device."""
        if isinstance(actions, torch.Tensor):
            tensor = actions
        else:
            with np.errstate(over="ignore"):  # what is too large is refused below
                tensor = torch.from_numpy(numbers_of("actions", actions).astype(np.float32))
        named = tuple("any" if n is None else n for n in shape)
        wrong = tensor.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, tensor.shape, strict=False))
        if wrong or 0 in tensor.shape:
            raise InputError("actions", f"shape {tuple(tensor.shape)}", f"give shape {named}, none of them 0")
        if tensor.dtype == torch.bool or tensor.is_complex():
            raise InputError("actions", f"dtype {tensor.dtype}", "give float32")
        tensor = tensor.to(self.device, torch.float32)
        if not torch.isfinite(tensor).all():
            raise InputError("actions", "NaN or inf", "give finite numbers")
        if tensor.abs().max() > 1 + 1e-3:
            raise InputError("actions", float(tensor.abs().max()), "stay within [-1, 1]")
        return tensor.clamp(-1, 1)


def _check_history(history: object) -> None:
    if not isinstance(history, History):
        raise InputError("history", type(history).__name__, "give what encode returns")
