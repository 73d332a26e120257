"""LeRobot's policy `emu_mpc`: its batches in, planned actions and imagined videos out. Loads a world model by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGE, OBS_IMAGES, OBS_STATE
from torch import Tensor

from emu_embodied.errors import InputError
from emu_embodied.policies.planners.cem import CEM
from emu_embodied.rollouts.agents.mpc import MPCAgent, MPCConfig
from emu_embodied.types import TASK, Observation

from .configuration_emu_mpc import EmuMpcConfig, no_training
from .dialects import Dialect, GymPushT, OwnWorld, choose
from .instructions import cost_of
from .pilot import Pilot


class EmuMpcPolicy(PreTrainedPolicy):
    """Plans in a world model's imagination, for all envs of a batch at once, and for each as if it were alone.

    The world model is no part of the module: it has no parameters for LeRobot, and stays on `config.device`.

    Args:
        config: its options.
        dataset_stats, dataset_meta: LeRobot's, not needed.

    Attributes:
        last_predicted_latents: (B, 1, 1, N) int64, the codes of what had been imagined for the last observation's moment, or
            the model's last moment where the env's steps are shorter; the time axis is LeRobot's, which joins them along it.
        dialect: how the env's words become the model's.
        scale: how its robot's actions become the model's.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ConfigError, InputError: see `EmuMpcConfig.check`; also a model of several action scales, of the wrong actions,
            or not of the world asked for.
        EngineError: the engine does not run here.
    """

    config_class = EmuMpcConfig  # pyright: ignore[reportAssignmentType] # LeRobot says None of what it demands
    name = "emu_mpc"  # pyright: ignore[reportAssignmentType] # as well
    config: EmuMpcConfig

    def __init__(self, config: EmuMpcConfig, dataset_stats: Any = None, dataset_meta: Any = None) -> None:
        super().__init__(config)
        from emu_embodied.loading import load

        config.check()
        options = {name: getattr(config, name) for name in ("device", "engine", "passes", "seed", "dataset")}
        self.world_model = load(config.checkpoint, **options)
        found = config.action_feature.shape if config.action_feature else (self.world_model.action_dim,)
        if tuple(found) != (self.world_model.action_dim,):
            raise InputError(
                "action", f"shape {tuple(found)}", f"the model's have shape ({self.world_model.action_dim},)"
            )
        self.dialect = self._dialect()
        agent = MPCAgent(self.world_model, CEM(config.planner, config.seed), MPCConfig(config.execute))
        self.scale = agent.scale
        cost = functools.partial(cost_of, goal=config.goal, model=self.world_model)
        self._pilot = Pilot(agent, self.dialect, cost)
        self.reset()

    def reset(self) -> None:
        """New episodes begin; all noise restarts."""
        self.last_predicted_latents: Tensor | None = None
        self.world_model.seed(self.config.seed)
        self._pilot.reset()

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], **_: Any) -> Tensor:
        """The next action of each env, (B, A) float32 in the env's units.

        Args:
            batch: the camera's pictures (B, 3, H, W) float in [0, 1], `observation.state` (B, D), and "task", B sentences; all
                of the env, in its units.

        Raises:
            InputError: a batch that does not fit the model.
        """
        actions, imagined_BN = self._pilot.act(self._observations(batch))
        self.last_predicted_latents = imagined_BN[:, None, None]
        return torch.from_numpy(actions).to(self.config.device)

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], **_: Any) -> Tensor:
        """The actions of a plan's first `execute` steps for each env, (B, T, A), from these frames alone."""
        return torch.from_numpy(self._pilot.chunk(self._observations(batch))).to(self.config.device)

    def decode_predicted_latents(self, latents: Tensor) -> np.ndarray:
        """Renders what was imagined, joined over time (B, 1, T, N), as frames (T, H, B * W, 3) uint8, the envs side by side."""
        frames_BTHWC = self.world_model.decode(latents[:, 0].to(self.world_model.device))
        return np.concatenate(frames_BTHWC, axis=2)

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict | None]:
        """There is no loss.

        Raises:
            ConfigError: always.
        """
        raise no_training()

    def get_optim_params(self) -> dict:
        """Nothing: the policy has no parameters."""
        return {}

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **options: Any
    ) -> EmuMpcPolicy:
        """The policy of a folder that `save_pretrained` wrote; `config` goes before the folder's."""
        named = {name: options.pop(name) for name in ("dataset_stats", "dataset_meta") if name in options}
        options.pop("strict", None)
        config = config or PreTrainedConfig.from_pretrained(pretrained_name_or_path, **options)
        assert isinstance(config, EmuMpcConfig)
        return cls(config, **named).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the options and the processors; the weights stay in the checkpoint that the options name."""
        from .processor_emu_mpc import make_emu_mpc_pre_post_processors

        self.config._save_pretrained(save_directory)
        for pipeline in make_emu_mpc_pre_post_processors(self.config):
            pipeline.save_pretrained(save_directory)

    def _dialect(self) -> Dialect:
        """The env's, as far as the config and LeRobot's features tell."""
        config, model = self.config, self.world_model
        features = config.image_features or {}
        camera = config.camera or (next(iter(features)) if len(features) == 1 else OBS_IMAGE)
        shown = features[camera].shape[-2] if camera in features else None
        if choose(config.world, model.world.env_id, model.image_size, shown) == "pusht":
            return GymPushT(model.image_size, camera)
        return OwnWorld(model.image_size, camera, config.letterbox)

    def _observations(self, batch: Mapping[str, Any]) -> list[Observation]:
        """Checks a batch once, at the boundary, and gives each env's part of it."""
        pictures = [name for name in batch if name == OBS_IMAGE or name.startswith(f"{OBS_IMAGES}.")]
        camera = self.config.choose_camera(pictures)
        pixels_BHWC = _pixels(camera, batch[camera])
        envs, otherwise = len(pixels_BHWC), self.config.instruction or self.dialect.instruction
        state = batch.get(OBS_STATE, torch.zeros(envs, self.world_model.agent_dim))
        if not isinstance(state, Tensor) or state.ndim != 2 or len(state) != envs or not torch.isfinite(state).all():
            found = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
            raise InputError(OBS_STATE, found, f"give finite numbers of shape ({envs}, D)")
        tasks = batch.get(TASK) or [""] * envs
        tasks = [tasks] * envs if isinstance(tasks, str) else tasks
        if len(tasks) != envs or not all(isinstance(task, str) for task in tasks):
            raise InputError(TASK, tasks, f"give a sentence for each of {envs} envs")
        rows = zip(pixels_BHWC, state.float().cpu().numpy(), tasks, strict=True)
        return [Observation(pixels, agent, task or otherwise) for pixels, agent, task in rows]


def _pixels(key: str, pictures: Any) -> np.ndarray:
    """LeRobot's pictures (B, 3, H, W), floats in [0, 1], as they were: (B, H, W, 3) uint8."""
    if (
        not isinstance(pictures, Tensor)
        or pictures.ndim != 4
        or pictures.shape[1] != 3
        or not pictures.is_floating_point()
    ):
        found = f"{pictures.dtype} {tuple(pictures.shape)}" if isinstance(pictures, Tensor) else type(pictures).__name__
        raise InputError(key, found, "give float32 RGB of shape (B, 3, H, W)")
    if not ((pictures >= 0) & (pictures <= 1)).all():  # NaN is neither
        raise InputError(key, "NaN, or values out of range", "give values in [0, 1]")
    return np.ascontiguousarray((pictures.float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
