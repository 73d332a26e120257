"""TokenWorldModel: observations and actions in, imagined frames out. Puts tokenizers, token model and decoding together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.decoding import autoregressive, dida, exact
from emu_embodied.decoding.config import DecodingConfig
from emu_embodied.decoding.guidance import GuidedEngine
from emu_embodied.decoding.sampling import entropy
from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.noise import make_noise
from emu_embodied.protocols import StepEngine
from emu_embodied.step import FrameStep, soft_step
from emu_embodied.token_model import StateEstimate, TokenModel
from emu_embodied.tokenizers.frames import FrameTokenizer
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.types import History, Observation, Rollout


class TokenWorldModel:
    """A world model over tokens; implements `protocols.WorldModel`.

    Args:
        tokenizer, text, model: the trained parts, in eval mode and on one device.
        world: names and scales (`checkpoint.World`).
        decoding: how frames are decoded.
        engine: executes the model's steps; eager by default.
        seed: of the sampling noise; see `seed`.
        chunk: most dreams (B x S) that are imagined at once; more are done in turn, which keeps memory and caches small. By
            default 16 on the CPU, whose caches then hold a layer's states, and 1,024 elsewhere.
        name: of the checkpoint, for errors about its weights.

    Raises:
        InputError: more passes than a frame has tokens.
    """

    def __init__(
        self,
        tokenizer: FrameTokenizer,
        text: TextTokenizer,
        model: TokenModel,
        world,
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
        self.engine = engine or FrameStep(model)
        self.decoding = decoding
        if decoding.guidance != 1:
            empty_L = text.batch([""], model.config.text_length, model.config.vocabulary.pad)[0]
            self.engine = GuidedEngine(self.engine, decoding.guidance, empty_L.to(model.noised.device))
        self.noise = make_noise(model.config.noise, tokenizer.places())
        self.image_size = tokenizer.config.image_size
        self.action_dim, self.agent_dim = model.config.action_dim, 2 if model.config.objects else 0
        self.objects, self.context_frames = model.config.objects, max(1, model.config.context_frames)
        self.tokens_per_frame, self.text_size = model.config.slots, model.config.vocabulary.text_size
        self.device = model.noised.device
        self.chunk = chunk or (16 if self.device.type == "cpu" else 1024)
        self.generator = torch.Generator(self.device)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restarts the sampling noise; greedy decoding has none."""
        self.generator.manual_seed(seed)

    @torch.inference_mode()
    def encode(self, observations: Sequence[Observation]) -> History:
        """Starts B histories, each from one observation: the frame, doubled, with zero actions between.

        Raises:
            InputError: no observations, or pixels of another shape or dtype.
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
        codes_BN = self._codes(observations)
        return history.push(self._actions(actions, (len(history), self.action_dim)), codes_BN)

    def step(self, history: History, actions: np.ndarray) -> tuple[History, Rollout]:
        """Imagines one step of each world from actions (B, A); returns the grown history and a rollout with S = T = 1."""
        actions_BA = self._actions(actions, (len(history), self.action_dim))
        rollout = self.rollout(history, actions_BA[:, None, None])
        return history.push(actions_BA, rollout.codes_BSTN[:, 0, 0]), rollout

    @torch.inference_mode()
    def rollout(self, history: History, actions: np.ndarray | torch.Tensor) -> Rollout:
        """Imagines the futures of actions (B, S, T, A) in [-1, 1]; the S candidates of a world share its prefix.

        Raises:
            InputError: actions of another shape or dtype, out of range or not finite.
            CheckpointError: weights that give an estimate which is not finite.
        """
        actions_BSTA = self._actions(actions, (len(history), None, None, self.action_dim))
        batch, candidates, steps, _ = actions_BSTA.shape
        cache = self.engine.prefill(history.text_BL, history.codes_BCN, history.actions_BCA, ahead=steps)
        per_world = max(1, self.chunk // batch)
        parts = [
            self._dream(cache.expand(part.shape[1]), part.flatten(0, 1))
            for part in actions_BSTA.split(per_world, dim=1)
        ]
        split = [[x.unflatten(0, (batch, -1)) for x in part] for part in parts]
        return self._rollout(*(torch.cat(pieces, 1) for pieces in zip(*split, strict=True)))

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

    def soft_rollout(self, history: History, actions: torch.Tensor, hard: bool = False) -> Rollout:
        """Imagines futures whose estimates have a gradient by the actions (B, S, T, A); implements `protocols.SoftWorldModel`.

        Each frame is one parallel pass, eager, and what follows sees the expected embeddings of its tokens instead of drawn
        ones. The past is the last C frames, read anew each step.

        Args:
            history: of B worlds.
            actions: (B, S, T, A) in [-1, 1], which may require a gradient.
            hard: embeds the likeliest codes, and only the gradient is that of the expected ones (straight-through).

        Raises:
            InputError: as `rollout`; or a model that was not trained with hidden tokens.
            CheckpointError: as `rollout`.
        """
        actions_BSTA = self._actions(actions, (len(history), None, None, self.action_dim))
        if self.model.config.noise != "absorbing":
            rule = "soft futures need a model trained with hidden tokens (absorbing)"
            raise InputError("noise", self.model.config.noise, rule)
        batch, candidates, steps, _ = actions_BSTA.shape
        with torch.inference_mode(False):  # what was made in it cannot be part of a gradient
            text_ML, codes_MCN, past_MCA = (
                x.clone().repeat_interleave(candidates, 0)
                for x in (history.text_BL, history.codes_BCN, history.actions_BCA)
            )
            probs_MCNV = F.one_hot(codes_MCN, self.model.config.vocabulary.codebook_size).float()
            rows: list[tuple[torch.Tensor, ...]] = []
            for actions_MA in actions_BSTA.flatten(0, 1).unbind(1):
                past_MCA = torch.cat([past_MCA, actions_MA[:, None]], 1)
                logits_MNV, hidden = soft_step(self.model, text_ML, probs_MCNV, past_MCA)
                log_probs_MNV = logits_MNV.float().log_softmax(-1)
                probs_MNV, codes_MN = log_probs_MNV.exp(), log_probs_MNV.argmax(-1)
                if hard:
                    likeliest_MNV = F.one_hot(codes_MN, probs_MNV.shape[-1]).float()
                    probs_MNV = likeliest_MNV + probs_MNV - probs_MNV.detach()
                state = self.model.estimate(hidden, text_ML, through=True)
                estimates = (state.reward, state.success, state.positions, state.presence)
                rows.append((codes_MN, *estimates, entropy(log_probs_MNV).mean(-1)))
                probs_MCNV = torch.cat([probs_MCNV, probs_MNV[:, None]], 1)[:, 1:]
                past_MCA = past_MCA[:, 1:]
        columns = (torch.stack(column, 1).unflatten(0, (batch, candidates)) for column in zip(*rows, strict=True))
        return self._rollout(*columns)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Renders visual codes (..., N) as frames (..., H, W, 3) uint8."""
        flat = codes.reshape(-1, self.tokens_per_frame)
        with self._named():
            frames = torch.cat([self.tokenizer.decode(part).cpu() for part in flat.split(256)])
        return frames.numpy().reshape(*codes.shape[:-1], *frames.shape[1:])

    def agent_pos(self, rollout: Rollout) -> np.ndarray:
        """The robot's own position (B, S, T, 2) float32 in world units: the first of `objects`; (B, S, T, 0) without any."""
        return rollout.positions_BSTOD[..., :1, :].flatten(-2).cpu().numpy()

    def _dream(self, cache, actions_BTA: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Codes, rewards, positions, entropy and the logits of success and presence of each step, (B, T, ...)."""
        steps, text_BL = actions_BTA.shape[1], cache.text_BL
        method = {"dida": dida, "exact": exact, "autoregressive": autoregressive}[self.decoding.decoding]
        decode = self.engine.whole_frame(method.decode_frame)
        rows: list[tuple[torch.Tensor, ...]] = []
        for t in range(steps):
            job = (self.engine, cache, actions_BTA[:, t], self.decoding, self.generator, self.noise)
            with self._named():
                codes, hidden, entropy = decode(*job)
            state: StateEstimate = self.model.estimate(hidden, text_BL)
            rows.append((codes, state.reward, state.success, state.positions, state.presence, entropy))
        return tuple(torch.stack(column, 1) for column in zip(*rows, strict=True))

    def _codes(self, observations: Sequence[Observation]) -> torch.Tensor:
        size = (self.image_size, self.image_size, 3)
        if not observations:
            raise InputError("observations", "none", "give at least one")
        for observation in observations:
            pixels = observation.pixels
            if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != size:
                found = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {getattr(pixels, 'shape', '')}"
                raise InputError("pixels", found, f"give uint8 RGB of shape {size}")
        pixels = torch.from_numpy(np.stack([o.pixels for o in observations]))
        with self._named():
            return self.tokenizer.encode(pixels.to(self.device))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Adds the checkpoint's name to what those say of its weights who do not know it."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error.field}", error.value, error.remedy) from None

    def _actions(self, actions: np.ndarray | torch.Tensor, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Checks actions once, at the boundary, and moves them to the device."""
        try:
            tensor = torch.as_tensor(actions)
        except (TypeError, ValueError, RuntimeError):
            raise InputError("actions", actions, "give an array of float32") from None
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
