"""A policy that LeRobot saved, as something that acts in our worlds. Knows LeRobot, where it is used, and no world."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu_embodied.errors import CheckpointError, EmuEmbodiedError, InputError
from emu_embodied.rollouts.vector_envs import DreamtWorlds, Moment, RealWorlds
from emu_embodied.storage.regular import MAX_JSON_BYTES, read_file
from emu_embodied.types import AGENT_POS, OBS_ENVIRONMENT_STATE, PIXELS, TASK

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")


class LeRobotAgent:
    """Acts by a LeRobot policy, as `lerobot-eval` lets it: its keys, its processors, one call for a batch.

    Args:
        policy: LeRobot's.
        processors: the pipelines before and after it.
        inputs: what it asks for: feature -> shape, by LeRobot's names as an env gives them.
        output: its actions' shape.
    """

    def __init__(self, policy: Any, processors: tuple, inputs: Mapping[str, tuple], output: tuple[int, ...]) -> None:
        self.policy, (self._before, self._after) = policy, processors
        self.inputs, self.output = dict(inputs), output

    def check(self, worlds: RealWorlds | DreamtWorlds) -> None:
        """Checks that the world shows what the policy asks for, and takes its actions.

        Raises:
            InputError: it does not; the message names the feature, and what is there.
        """
        offers = ", ".join(
            f"{name} {' or '.join(map(str, shapes))}" for name, shapes in worlds.shapes.items() if shapes
        )
        for key, shape in self.inputs.items():
            if shape not in worlds.shapes.get(key, []):
                remedy = f"this world shows {offers}: choose its env and image_size, or train the policy on data of it"
                raise InputError(f"policy's {key}", f"shape {shape}", remedy)
        if self.output != worlds.action_space.shape:
            remedy = f"this world's actions have shape {worlds.action_space.shape}"
            raise InputError("policy's action", f"shape {self.output}", remedy)
        if hasattr(self.policy, "scale"):  # emu_mpc's: what its world model's actions are in the robot's units
            self.policy.scale.check(worlds.action_space, "world's action_space")

    def begin(self, worlds: RealWorlds | DreamtWorlds, seeds: Sequence[int]) -> None:
        """New episodes begin; the policy forgets, and its noise depends on the seeds alone."""
        self.policy.reset()
        torch.manual_seed(int(np.random.SeedSequence([*seeds, 89]).generate_state(1)[0]))

    def act(self, moment: Moment) -> np.ndarray:
        """The next actions (N, A) float32, in the env's units."""
        from lerobot.envs import preprocess_observation

        seen = {PIXELS: moment.pixels, AGENT_POS: moment.agent_pos}
        if OBS_ENVIRONMENT_STATE in self.inputs:
            seen["environment_state"] = moment.states[self.inputs[OBS_ENVIRONMENT_STATE][0]]
        batch = {**preprocess_observation(seen), TASK: list(moment.tasks)}
        with torch.inference_mode():
            return self._after(self.policy.select_action(self._before(batch))).float().cpu().numpy()


def load_agent(folder: str | Path, device: str | None = None) -> LeRobotAgent:
    """The agent of a policy that LeRobot saved.

    Args:
        folder: what `lerobot-train` saves as `pretrained_model`: `config.json`, weights, and the two processors.
        device: where it runs; None is CUDA where there is one, else the CPU.

    Raises:
        CheckpointError: no such folder, a file that is missing or damaged, or one that names code to run.
    """
    folder = Path(folder)
    steps = check_folder(folder)
    policy, *processors = _load(folder, device or _device(), steps)
    features, actions = policy.config.input_features or {}, policy.config.action_feature
    renamed = _renamed(steps)
    inputs = {renamed.get(key, key): tuple(feature.shape) for key, feature in features.items()}
    return LeRobotAgent(policy, tuple(processors), inputs, tuple(actions.shape) if actions else ())


def planning_agent(checkpoint: str, device: str | None = None, **options: Any) -> LeRobotAgent:
    """The agent that plans in a world model, LeRobot's `emu_mpc`; options are those of its config.

    Raises:
        CheckpointError, ConfigError, InputError: see `EmuMpcPolicy`.
    """
    from emu_embodied.policies.lerobot_plugin.configuration_emu_mpc import EmuMpcConfig
    from emu_embodied.policies.lerobot_plugin.modeling_emu_mpc import EmuMpcPolicy
    from emu_embodied.policies.lerobot_plugin.processor_emu_mpc import make_emu_mpc_pre_post_processors

    policy = EmuMpcPolicy(EmuMpcConfig(checkpoint=checkpoint, device=device or _device(), **options))
    return LeRobotAgent(policy, make_emu_mpc_pre_post_processors(policy.config), {}, (policy.world_model.action_dim,))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_folder(folder: Path) -> list[dict[str, Any]]:
    """Checks a saved policy before anything of it is loaded; returns the steps of its two processors.

    Raises:
        CheckpointError: see `load_agent`.
    """
    if not folder.is_dir():
        raise CheckpointError("policy", str(folder), "give a folder that lerobot-train saved (pretrained_model)")
    needed = (CONFIG, WEIGHTS, *PROCESSORS)
    if (folder / CONFIG).is_file() and _json(folder / CONFIG).get("type") == "emu_mpc":  # its config names its model
        needed = (CONFIG, *PROCESSORS)
    for name in needed:
        if not (folder / name).is_file():
            raise CheckpointError(
                "policy", str(folder), f"it has no {name}: give lerobot-train's pretrained_model folder"
            )
    steps = []
    for name in PROCESSORS:
        found = _json(folder / name).get("steps", [])
        if not isinstance(found, list) or not all(isinstance(step, dict) and "registry_name" in step for step in found):
            remedy = "it names code to import; only LeRobot's registered steps are run"
            raise CheckpointError("policy", str(folder / name), remedy)
        for step in found:
            config = {} if step.get("config") is None else step["config"]
            names = config.get("rename_map") or {} if isinstance(config, dict) else None
            if not isinstance(names, dict) or not all(isinstance(there, str) for there in names.values()):
                remedy = "a step's config is a mapping, and its rename_map one of names: save the policy anew"
                raise CheckpointError("policy", str(folder / name), remedy)
        steps += found
    return steps


def policy_label(folder: str | Path) -> str:
    """A policy's folder and a hash of what is in it, so that no journal is continued with another."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.suffix in (".json", ".safetensors") and path.is_file():  # a pipe would wait, a device would never end
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder} {digest.hexdigest()[:16]}"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_file(path, MAX_JSON_BYTES))
    except (CheckpointError, ValueError, RecursionError) as error:
        raise CheckpointError("policy", str(path), f"it cannot be read ({error}): save the policy anew") from None
    if not isinstance(found, dict):
        raise CheckpointError("policy", str(path), "it is no JSON object: save the policy anew")
    return found


def _renamed(steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The policy's names -> the env's, where its preprocessor renames, perhaps in several steps."""
    names: dict[str, str] = {}
    for step in steps:
        renamed = (step.get("config") or {}).get("rename_map") or {}
        names |= {there: names.pop(here, here) for here, there in renamed.items()}
    return names


def _load(folder: Path, device: str, steps: Sequence[Mapping[str, Any]]):
    """The policy and its processors, by LeRobot's factories."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.factory import get_policy_class

    import emu_embodied.policies.lerobot_plugin  # noqa: F401  registers emu_mpc

    moves = {"device_processor": {"device": device}}
    before = moves if any(step["registry_name"] == "device_processor" for step in steps) else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = PreTrainedConfig.from_pretrained(folder)
            config.device, config.pretrained_path = device, folder
            for name in vars(config).keys() & {"pretrained_backbone_weights"}:
                setattr(config, name, None)  # its own weights follow; nothing is fetched
            policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
            processors = make_pre_post_processors(config, str(folder), preprocessor_overrides=before)
    except EmuEmbodiedError:
        raise
    except (Exception, SystemExit) as error:  # LeRobot, draccus and safetensors raise many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError("policy", str(folder), f"LeRobot cannot load it: {reason}") from error
    return policy, *processors
