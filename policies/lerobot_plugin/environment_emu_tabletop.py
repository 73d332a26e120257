"""LeRobot's env `emu_tabletop`: the table-top's options and its registration, here, so that env workers register it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import register, registry
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.utils import NEW_ROLLOUT_OPTION
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGE, OBS_STATE

from emu_embodied.envs.tabletop.tasks import OBJECTS
from emu_embodied.types import AGENT_POS, PIXELS

if TYPE_CHECKING:
    from emu_embodied.envs.tabletop.env import TabletopPushEnv

PACKAGE, TASK_ID, STATE = "emu_embodied", "LeRobotTabletop-v0", "environment_state"


class ForLeRobot(gymnasium.Wrapper):
    """The table-top as LeRobot wants it: its mark of a new rollout is no option of the reset, and the state that `collect`
    records, which policies trained on such data ask for, is an observation."""

    def __init__(self, env: TabletopPushEnv) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gymnasium.spaces.Dict)
        state = gymnasium.spaces.Box(-np.inf, np.inf, (len(env.state_names),), np.float32)
        self.observation_space = gymnasium.spaces.Dict({**env.observation_space.spaces, STATE: state})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """The env's reset."""
        own = {name: value for name, value in (options or {}).items() if name != NEW_ROLLOUT_OPTION}
        observation, info = self.env.reset(seed=seed, options=own)
        return {**observation, STATE: info[STATE]}, info

    def step(self, action: np.ndarray):
        """The env's step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return {**observation, STATE: info[STATE]}, reward, terminated, truncated, info


def tabletop(**options: Any) -> gymnasium.Env:
    """Makes the table-top for LeRobot; options as for TabletopPush-v0."""
    from emu_embodied.envs.tabletop.env import TabletopPushEnv

    return ForLeRobot(TabletopPushEnv(**options))


vars(tabletop)["metadata"] = {"render_modes": ["rgb_array"], "render_fps": 4}  # for `make` to know before there is an env

if f"{PACKAGE}/{TASK_ID}" not in registry:
    register(f"{PACKAGE}/{TASK_ID}", f"{__name__}:tabletop", max_episode_steps=40)


@EnvConfig.register_subclass("emu_tabletop")
@dataclass
class EmuTabletopEnv(EnvConfig):
    """Each option is an `--env.NAME=` of `lerobot-eval`.

    Attributes:
        task: the name under which the env is registered.
        fps: of its videos: one step is 0.25 s.
        episode_length: steps after which an episode has failed.
        image_size, stochastic, shift: the table-top's; see `envs.tabletop.TabletopConfig`.
        render_mode: Gymnasium's.
        features, features_map: LeRobot's; filled in.
    """

    task: str | None = TASK_ID
    fps: int = 4
    episode_length: int = 40
    image_size: int = 64
    stochastic: bool = False
    shift: str | None = None
    render_mode: str = "rgb_array"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(
        default_factory=lambda: {ACTION: ACTION, AGENT_POS: OBS_STATE, PIXELS: OBS_IMAGE, STATE: OBS_ENV_STATE}
    )

    def __post_init__(self) -> None:
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (2,)),
            AGENT_POS: PolicyFeature(FeatureType.STATE, (2,)),
            STATE: PolicyFeature(FeatureType.ENV, (4 * len(OBJECTS),)),
            PIXELS: PolicyFeature(FeatureType.VISUAL, (self.image_size, self.image_size, 3)),
        }

    @property
    def package_name(self) -> str:
        """The part of the registered name before the slash."""
        return PACKAGE

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Keywords of `gymnasium.make`."""
        options = {name: getattr(self, name) for name in ("image_size", "stochastic", "shift", "render_mode")}
        return {**options, "max_episode_steps": self.episode_length}
