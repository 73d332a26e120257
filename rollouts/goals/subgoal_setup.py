"""Who proposes the subgoals of an episode, and how they are followed. Knows the controls by name, no checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import gymnasium

from emu_embodied.data.frame_cache import load_frame_cache
from emu_embodied.envs.tabletop.tasks import OBJECTS
from emu_embodied.errors import ConfigError
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.policies.subgoal_manager import SubgoalConfig, SubgoalManager
from emu_embodied.protocols import SubgoalProposer, Trained, WorldModel
from emu_embodied.storage.files import MANIFEST
from emu_embodied.storage.regular import read_json
from emu_embodied.validation import whole_fields

from .subgoal_filter import FilteredProposer, Sight
from .subgoal_proposers import CopyCurrent, Reinstructed, Retrieved, TrueSubgoals, another_instruction

CONTROLS = ("true", "copy", "retrieved", "random", "shuffled")
TEE = {"home": 0.6}  # settings on PushT, whose mark is to be met more exactly
TRIAL = CEMConfig(candidates=24, iterations=1, elites=4, horizon=8, execute=4)  # in a filter's imagination


@dataclass(frozen=True)
class Following:
    """Who proposes subgoals, and how they are followed.

    Attributes:
        proposer: names the learnt one in a journal, or one of the controls: "true" (the scripted expert's own way), "copy"
            (what is seen now), "retrieved" (the end of the most similar recorded episode), "random" (that of any recorded
            episode), "shuffled" (the learnt one, or without one the truth, given another instruction than the episode's).
        recordings: the frame cache, a folder, that "retrieved" and "random" take frames from.
        tries: most drawings of a chain of subgoals, of which the first without a fault is taken; 1 takes what comes.
        imagine: whether those are tried out in imagination too.
        habits: settings of the subgoal manager.
        recorded: a digest of the recordings, so that a journal is not continued with others; found by itself.

    Raises:
        ConfigError: a control without its recordings, or less than one try.
        CheckpointError: recordings that are not there.
    """

    proposer: str
    recordings: str = ""
    tries: int = 1
    imagine: bool = False
    habits: SubgoalConfig = field(default_factory=SubgoalConfig)
    recorded: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.proposer in ("retrieved", "random") and not self.recordings:
            rule = f"subgoals={self.proposer} takes frames from a frame cache: give its folder, DATASET.frames"
            raise ConfigError("recordings", self.recordings or None, rule)
        whole_fields(self, {"tries": (1, None)})
        if self.recordings:
            sums = json.dumps(read_json(Path(self.recordings) / MANIFEST), sort_keys=True)
            object.__setattr__(self, "recorded", hashlib.sha256(sums.encode()).hexdigest()[:16])


class Follower:
    """Makes for each episode the one who follows its subgoals.

    Args:
        following: what to make.
        env: the real environment.
        make_proposer: loads the learnt proposer; called where one is needed.

    Raises:
        ConfigError: a learnt proposer without what loads it.
        InputError, DatasetError: an env or recordings that the control does not know.
    """

    def __init__(
        self, following: Following, env: gymnasium.Env, make_proposer: Callable[[], SubgoalProposer] | None = None
    ) -> None:
        self.following, self.env, self.learnt = following, env, None
        name = following.proposer
        if name not in CONTROLS and make_proposer is None:
            raise ConfigError("subgoals", name, f"give make_proposer, which loads one, or choose one of {CONTROLS}")
        if make_proposer and name not in CONTROLS[:4]:
            self.learnt = make_proposer()
        self._fixed = self._control(name)

    def proposer(self, seed: int, model: WorldModel | None = None) -> SubgoalProposer:
        """Who proposes in the episode of a seed, after the env's reset.

        Args:
            seed: of the episode.
            model: in whose imagination subgoals are tried out, where that is asked for.
        """
        f, proposer = self.following, self._fixed
        if f.proposer == "shuffled":
            proposer = Reinstructed(proposer, another_instruction(self.env, seed))
        if f.tries == 1:
            return proposer
        sight = Sight.of(model.world) if isinstance(model, Trained) else Sight.of_tabletop()
        if not f.imagine or model is None:
            return FilteredProposer(proposer, sight, f.tries, config=f.habits)
        return FilteredProposer(proposer, sight, f.tries, model, CEM(TRIAL, seed), f.habits)

    def begin(self, env: gymnasium.Env, model: WorldModel, seed: int) -> SubgoalManager:
        """Who follows the subgoals of the episode of a seed, after the env's reset, in places that the model believes."""
        habits = self.following.habits
        if not set(model.objects) <= set(OBJECTS):  # its things are no cubes, which one can walk around as around discs
            habits = replace(habits, radius=None, **TEE)
        return SubgoalManager(self.proposer(seed, model), model.objects, habits, seed)

    def _control(self, name: str) -> SubgoalProposer:
        if name in ("retrieved", "random"):
            cache = load_frame_cache(Path(self.following.recordings))
            return Retrieved(self.env, cache, nearest=name == "retrieved")
        if name == "copy":
            return CopyCurrent(self.env)
        return self.learnt or TrueSubgoals(self.env)
