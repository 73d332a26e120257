"""Records dreams as a LeRobot dataset, in shards, and goes on after a crash. Knows the world model's protocol only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.lerobot_files import SIDECAR
from emu_embodied.data.lerobot_format import Names, read_notes
from emu_embodied.envs.imagined.core import Dreams
from emu_embodied.envs.imagined.starts import SEEDS, Starts
from emu_embodied.errors import DatasetError
from emu_embodied.labels import knows
from emu_embodied.policies.experts.tabletop import Collector
from emu_embodied.protocols import NamedWorld, Trained, WorldModel
from emu_embodied.rollouts.vector_envs import believed_names, laid_out
from emu_embodied.storage.schema import build
from emu_embodied.types import ACTION, AGENT_POS, OBS_ENVIRONMENT_STATE, OBS_STATE, PIXELS, Episode
from emu_embodied.units import ActionScale
from emu_embodied.validation import choice, whole_fields

from .episodes import names_of
from .shards import Shard, complete_dataset, join_shards, read_statistics, write_shard

EPISODES_PER_SHARD = 25  # dreamt together
POLICIES = ("random", "scripted-noise")
PACKAGES = ("emu-embodied", "lerobot", "torch", "gymnasium", "numpy")


@dataclass(frozen=True)
class ImagineSettings:
    """What determines an imagined dataset; recorded beside it, so that no other settings continue it.

    Attributes:
        checkpoint: what dreamt, as it was called.
        weights: fingerprint of its weights.
        episodes: how many; episode i has the seed `seed + i`.
        steps: actions per episode; success does not end one. They are recorded in the robot's units.
        policy: "random" (motion that changes slowly), or "scripted-noise" (the table-top's noisy pusher, which acts on where
            the dream believes things to be; its first action is random).
        seed: of the first episode.
        starts: the dataset in whose frames dreams start; empty for the real env's resets.
        decoding: how frames are decoded.
    """

    checkpoint: str
    weights: str
    episodes: int
    steps: int = 40
    policy: str = "random"
    seed: int = 0
    starts: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole_fields(self, {"episodes": (1, None), "steps": (1, None), "seed": (0, None)}, DatasetError)
        choice("policy", self.policy, POLICIES, DatasetError)


@dataclass(frozen=True)
class ImagineSummary:
    """What an imagined dataset holds; the numbers of its `meta/emu_embodied.json`.

    Attributes:
        episodes, frames: how many are in the dataset.
        success: share in [0, 1] of episodes in which the model believes its instruction fulfilled at some time; None where its
            data did not tell of success.
        complete: False after an interruption.
        recorded: episodes that this call dreamt; the others were there.
    """

    episodes: int
    frames: int
    success: float | None
    complete: bool
    recorded: int = 0


def imagine(
    model: WorldModel,
    settings: ImagineSettings,
    root: str | Path,
    starts: FrameCache | None = None,
    report: Callable[[str], None] = print,
) -> ImagineSummary:
    """Dreams a dataset, or what is missing of it.

    Shards of 25 episodes, dreamt together, are written to `<root>.parts`; a kill loses the shard at work, and a second call
    goes on with the others. At the end, and at Ctrl-C, the finished shards are joined at `root`. Same settings, same files,
    to the byte, however often it was killed (with the same packages and as many threads on the same machine).

    Args:
        model: what dreams.
        settings: what is dreamt.
        root: the dataset's folder.
        starts: frames in which dreams start, each in a random one; None: where the real env's resets do.
        report: prints a line of progress.

    Raises:
        DatasetError: a policy that does not fit the model, settings other than those of the dataset begun at `root`, a folder
            at `root` that is something else, or a second writer at work on it.
        InputError: starts that do not fit the model, or no real env to start in.
        KeyboardInterrupt: after the finished shards were joined.
    """
    root, env_id = Path(root).absolute(), model.world.env_id if isinstance(model, Trained) else ""
    if settings.policy == "scripted-noise" and not env_id.endswith("TabletopPush-v0"):
        raise DatasetError("policy", settings.policy, "it knows the table-top only: choose random")
    places = functools.cache(lambda: Starts(model, None, starts))

    def record(missing: list[Shard], folder: Path) -> None:
        with closing(places()):
            fps = starts.fps if starts is not None else places().real_env.metadata["render_fps"]
            names = state_names(model, _real_names(places(), starts))
            for shard in missing:
                totals = {"episodes": 0, "frames": 0, "successes": 0}
                dreams = _counted(dream_episodes(model, settings, shard, places(), starts), totals)
                write_shard(shard, folder, _as_named(dreams, model, names), names, max(1, round(fps)), totals)
                report(f"imagine: {shard.first + shard.count} of {settings.episodes} episodes")

    def join(done: list[Shard], folder: Path, complete: bool) -> ImagineSummary:
        return _join(settings, model, places().scale, root, done, folder, complete)

    return complete_dataset(root, settings, PACKAGES, EPISODES_PER_SHARD, read=_read_summary, record=record, join=join)


def _read_summary(root: Path) -> ImagineSummary:
    place = root / SIDECAR
    return build(ImagineSummary, read_notes(place).get("summary"), f"{place}: summary", DatasetError)


def state_names(model: WorldModel, real: Names | None = None) -> Names:
    """What the elements of a dream's vectors are called, by column.

    Args:
        model: what dreams.
        real: what the world's own recordings call them. Where they tell of the same objects, dreams are laid out alike, so that
            LeRobot's tools can merge the two: what the model does not believe in, such as yaw, is 0.
    """
    actions = model.world.action_names if isinstance(model, Trained) else ()
    own = {
        OBS_STATE: ("x", "y")[: model.agent_dim],
        OBS_ENVIRONMENT_STATE: believed_names(_located(model)),
        ACTION: actions if len(actions) == model.action_dim else [str(i) for i in range(model.action_dim)],
    }
    names = own[OBS_ENVIRONMENT_STATE]
    if not (real and names and set(names) <= set(real[OBS_ENVIRONMENT_STATE])):
        return own
    return real if all(len(real[key]) == len(own[key]) for key in (OBS_STATE, ACTION)) else own


def _real_names(places: Starts, starts: FrameCache | None) -> Names | None:
    """What the recordings of the world where dreams start call the elements of its vectors; None where they do not."""
    if starts is not None:
        keys = {OBS_STATE: "agent_pos", OBS_ENVIRONMENT_STATE: "state", ACTION: "action"}
        return {key: starts.names.get(name, []) for key, name in keys.items()}
    world = places.real_env.unwrapped
    return names_of(world) if isinstance(world, NamedWorld) else None


def _located(model: WorldModel) -> tuple[str, ...]:
    """The objects whose places the model knows."""
    return tuple(model.objects) if knows(model, "positions") else ()


def dream_episodes(
    model: WorldModel, settings: ImagineSettings, shard: Shard, places: Starts, dataset: FrameCache | None
) -> Iterator[Episode]:
    """Dreams a shard's episodes together; the first frame of each is the start as the model sees it.

    The state at the first frame is what the model believes after standing still for a step.
    """
    seeds = range(settings.seed + shard.first, settings.seed + shard.first + shard.count)
    rngs = [np.random.default_rng([seed, 79]) for seed in seeds]
    chosen = [{} if dataset is None else _any_frame(dataset, rng) for rng in rngs]
    starts = [places.find(seed, rng, options) for seed, rng, options in zip(seeds, rngs, chosen, strict=True)]
    scale = places.scale
    dreams = Dreams(model, places.agent_space, shard.count, scale=scale)
    dreams.begin(range(shard.count), starts, [int(rng.integers(SEEDS)) for rng in rngs])
    actors = [_Actor(settings.policy, model.action_dim, rng) for rng in rngs]
    still, located = dreams.stand_still(), len(_located(model))
    columns: dict[str, list[np.ndarray]] = {"actions": [], "rewards": [], "successes": []}
    beliefs = still.positions_BSTOD[:, 0, 0].cpu().numpy(), still.presence_BSTO[:, 0, 0].cpu().numpy() > 0.5
    beliefs = tuple(x[:, :located] for x in beliefs)
    frames, states = [dreams.observations], [_state(*beliefs)]
    for _ in range(settings.steps):
        actions = np.stack([actor.act(*belief) for actor, *belief in zip(actors, *beliefs, strict=True)])
        actions = scale.to_robot(actions)
        done = dreams.step(actions)
        if located:
            beliefs = (
                np.array([list(info["positions"].values()) for info in done.infos]),
                np.array([list(info["presence"].values()) for info in done.infos]) > 0.5,
            )
        frames.append(dreams.observations)
        states.append(_state(*beliefs))
        for name, values in (("actions", actions), ("rewards", done.rewards), ("successes", done.successes)):
            columns[name].append(values)
    for i, start in enumerate(starts):
        yield Episode(
            pixels=np.stack([frame[PIXELS][i] for frame in frames]),
            agent_pos=np.stack([frame[AGENT_POS][i] for frame in frames]).astype(np.float32),
            states=np.stack([state[i] for state in states]),
            actions=np.stack([values[i] for values in columns["actions"]]).astype(np.float32),
            rewards=np.array([x[i] for x in columns["rewards"]], np.float32) if knows(model, "reward") else None,
            successes=np.array([x[i] for x in columns["successes"]], bool) if knows(model, "success") else None,
            instruction=start.instruction,
        )


class _Actor:
    """One dream's policy."""

    def __init__(self, policy: str, size: int, rng: np.random.Generator) -> None:
        self.rng, self.drift, self.begun = rng, rng.normal(0, 0.5, size), False
        self.scripted = Collector("noisy", rng) if policy == "scripted-noise" else None

    def act(self, positions: np.ndarray, present: np.ndarray) -> np.ndarray:
        """An action (A,) float32 in [-1, 1], from where the objects (O, 2) are believed and which (O,) are in view."""
        if self.scripted is not None and present[1:].any():
            present = np.array([True, *present[1:]])
            return self.scripted.act(positions.astype(np.float64), present, 1, np.zeros(2))
        self.drift = 0.8 * self.drift + 0.42 * self.rng.normal(size=len(self.drift))
        return np.clip(self.drift, -1, 1).astype(np.float32)


def _any_frame(dataset: FrameCache, rng: np.random.Generator) -> dict[str, int]:
    episode = int(rng.integers(dataset.episodes))
    return {"episode": episode, "frame": int(rng.integers(np.diff(dataset.episode_starts)[episode]))}


def _state(positions_BOD: np.ndarray, present_BO: np.ndarray) -> np.ndarray:
    """(B, 3 O) float32: x, y and presence of each object."""
    rows = np.concatenate([positions_BOD, present_BO[..., None]], -1)
    return rows.reshape(len(rows), -1).astype(np.float32)


def _as_named(episodes: Iterator[Episode], model: WorldModel, names: Names) -> Iterator[Episode]:
    """The episodes with their states in the layout of `names`."""
    own = believed_names(_located(model))
    for episode in episodes:
        yield replace(episode, states=laid_out(episode.states, own, list(names[OBS_ENVIRONMENT_STATE])))


def _counted(episodes: Iterator[Episode], totals: dict[str, int]) -> Iterator[Episode]:
    for episode in episodes:
        totals["episodes"] += 1
        totals["frames"] += len(episode.pixels)
        totals["successes"] += 0 if episode.successes is None else int(episode.successes.any())
        yield episode


def _join(
    settings: ImagineSettings,
    model: WorldModel,
    scale: ActionScale,
    root: Path,
    done: list[Shard],
    folder: Path,
    complete: bool,
) -> ImagineSummary:
    """Joins the finished shards at `root`."""
    names = ("episodes", "frames", "successes")
    statistics = [read_statistics(shard, folder, names) for shard in done]
    episodes, frames, successes = (sum(s[name] for s in statistics) for name in names)
    share = successes / episodes if knows(model, "success") else None
    summary = ImagineSummary(episodes, frames, share, complete)
    notes = {
        "imagined": True,
        "settings": asdict(settings),
        "summary": asdict(summary),
        "action_scale": [] if scale.is_identity else [[scale.centre.tolist(), scale.half.tolist()]],
        "actions": "robot",  # in its units; earlier ones were in [-1, 1] whatever the scale
    }
    join_shards(done, folder, root, notes, PACKAGES)
    return summary
