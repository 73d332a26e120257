"""Options of LeRobot's policy `emu_mpc`, which plans in a world model's imagination. Knows no world model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import OBS_IMAGE

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.policies.planners.cem import CEMConfig

from .dialects import WORLDS

GOALS = ("auto", "positions", "reward")


@PreTrainedConfig.register_subclass("emu_mpc")
@dataclass
class EmuMpcConfig(PreTrainedConfig):
    """Each option is a `--policy.NAME=` of `lerobot-eval`.

    Attributes:
        checkpoint: the world model, a shipped name or a checkpoint's folder.
        goal: "positions" (the instruction's predicate on imagined positions: the table-top's, or PushT's T on its mark),
            "reward" (the model's own reward) or "auto": positions where the model knows what the instruction is about,
            else reward.
        instruction: what to do where the env names no task.
        world: what the env speaks, see `dialects`: "own" (as the model's world), "pusht" (LeRobot's PushT, for a model of
            ours) or "auto": pusht for a PushT model that is shown pictures of another size than its own, else own.
        camera: key of the pictures that the model sees; "" takes `observation.image`, or the only ones that there are, after
            `--rename_map` has renamed them.
        dataset: of a model of several robots, which one it drives: see `loading.load`.
        letterbox: fit pictures of another size into the model's, as training does; otherwise they are an error.
        horizon, candidates, iterations, elites, execute: the planner's, in the model's steps; see `planners.cem.CEMConfig`.
        passes: parallel passes per imagined frame.
        engine: what executes the model; see `loading.load`.
        seed: of the planner's and the model's noise; the planner of env i of a batch has `seed + i`.
        save_predicted_video: LeRobot writes what was imagined beside what happened; not together with `--eval.recording=true`.
    """

    checkpoint: str = "nano-tabletop"
    goal: str = "auto"
    instruction: str = ""
    world: str = "auto"
    camera: str = ""
    dataset: int | None = None
    letterbox: bool = False
    horizon: int = 8
    candidates: int = 64
    iterations: int = 3
    elites: int = 8
    execute: int = 2
    passes: int = 1
    engine: str = "eager"
    seed: int = 0
    save_predicted_video: bool = True

    def check(self) -> None:
        """Checks the options. The policy calls it: LeRobot's parser would swallow what is said while it makes the config.

        Raises:
            ConfigError: an unknown goal or world, or passes or seed below their least.
            InputError: a planner's budget that does not fit together, or a camera that is not there.
        """
        for name, known in (("goal", GOALS), ("world", WORLDS)):
            if getattr(self, name) not in known:
                raise ConfigError(name, getattr(self, name), f"choose one of {known}")
        for name, least in (("passes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(name, getattr(self, name), f"give a whole number of at least {least}")
        _ = self.planner  # says what does not fit together
        self.validate_features()

    @property
    def planner(self) -> CEMConfig:
        """The planner's budget."""
        names = ("horizon", "candidates", "iterations", "elites", "execute")
        return CEMConfig(**{name: getattr(self, name) for name in names})

    def validate_features(self) -> None:
        """Checks that the env or dataset has the camera, where one is named.

        Raises:
            InputError: it has not.
        """
        if self.image_features and self.camera:
            self.choose_camera(self.image_features)

    def choose_camera(self, there: Collection[str]) -> str:
        """Which of the pictures that are there the model sees.

        Raises:
            InputError: not the camera that is named, or several and none is.
        """
        if self.camera in there or self.camera == "" and OBS_IMAGE in there:
            return self.camera or OBS_IMAGE
        if self.camera == "" and len(there) == 1:
            return next(iter(there))
        raise InputError("camera", self.camera, f"choose one of {sorted(there) or 'none that is there'}: --policy.camera=...")

    @property
    def observation_delta_indices(self) -> None:
        """None: it sees the present alone."""

    @property
    def action_delta_indices(self) -> None:
        """None: nothing is learnt from actions."""

    @property
    def reward_delta_indices(self) -> None:
        """None: nor from rewards."""

    def get_optimizer_preset(self):
        """There is none.

        Raises:
            ConfigError: always; LeRobot's trainer asks for it first.
        """
        raise no_training()

    def get_scheduler_preset(self) -> None:
        """None: nothing is trained."""


def no_training() -> ConfigError:
    """The error of who wants to train the policy."""
    return ConfigError(
        "policy.type", "emu_mpc", "it plans and learns nothing: train its model with `emu-embodied train`"
    )
