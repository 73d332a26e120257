"""Kills at random moments: of savers, of trainings, of recordings. What is on the disk is the old or the new, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tiny import tiny_world_model

from emu_embodied.checkpoint import add_card, load_checkpoint, save_checkpoint
from emu_embodied.rollouts.evaluation.journal import append, open_journal
from emu_embodied.storage.files import load_file, load_folder

from .battery import Job, NotRun, Trial, battery
from .processes import call_main, fork_until_killed, in_child


class Saver:
    """Something that is saved again and again, each time with a higher version.

    Args:
        folder: an empty one.

    Attributes:
        seconds: about what a few savings take; kills fall within.
    """

    seconds = 0.15

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, version: int) -> None:
        raise NotImplementedError

    def version(self) -> int:
        """What is on the disk; raises where it is not whole."""
        raise NotImplementedError

    def litter(self) -> list[str]:
        """Names of what a save in peace should not have left."""
        return [path.name for path in self.folder.iterdir() if path.name.startswith(".")]


class CheckpointSaver(Saver):
    """Saves a checkpoint whose weights say which version it is."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = tiny_world_model()
        self.save(0)

    def save(self, version: int) -> None:
        torch.nn.init.constant_(next(self.model.model.parameters()), version)
        parts = (self.model.tokenizer, self.model.text, self.model.model, self.model.world)
        save_checkpoint(self.folder / "checkpoint", *parts, {"version": version})

    def version(self) -> int:
        *_, model, _, config = load_checkpoint(self.folder / "checkpoint")
        version = config["training"]["version"]
        if not (next(model.parameters()) == version).all():
            raise AssertionError(f"weights of another version than {version}")
        return version


class CardSaver(CheckpointSaver):
    """Puts a model card and its figures into a checkpoint's folder."""

    def save(self, version: int) -> None:
        if version == 0:
            super().save(0)
        add_card(self.folder / "checkpoint", f"# Version {version}\n", {"version": version})

    def version(self) -> int:
        super().version()
        version = json.loads(load_file(self.folder / "checkpoint", "metrics.json"))["version"]
        if load_file(self.folder / "checkpoint", "README.md") != f"# Version {version}\n".encode():
            raise AssertionError("card and figures of two versions")
        return version


class JournalSaver(Saver):
    """Appends rows to a journal, one a version."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path, self.settings = folder / "episodes.jsonl", {"env": "table-top"}
        open_journal(self.path, self.settings)

    def save(self, version: int) -> None:
        append(self.path, {"seed": version, "text": "x" * 5000})

    def version(self) -> int:
        rows = open_journal(self.path, self.settings)
        if sorted(rows) != list(range(1, len(rows) + 1)):
            raise AssertionError(f"episodes {sorted(rows)[:20]}")
        return len(rows)


class DatasetSaver(Saver):
    """Joins two recorded parts at one place again and again, as `collect` does at its end."""

    seconds = 0.6

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        made = in_child(self._record, 120)
        if made.kind != "done":
            raise NotRun(f"no dataset could be written: {made}")

    def _record(self) -> None:
        from recorded_episodes import NAMES, episode

        from emu_embodied.rollouts.collection.shards import STATISTICS, split, write_shard

        (self.folder / "d.parts").mkdir()
        for part in split(4, 2):
            seeds = range(part.first, part.first + part.count)
            write_shard(part, self.folder / "d.parts", (episode(seed) for seed in seeds), NAMES, 4, {"seen": str(STATISTICS)})
        self._join(0)

    def _join(self, version: int) -> None:
        from emu_embodied.rollouts.collection.shards import check_settings, join_shards, locked, split

        root, folder = self.folder / "d", self.folder / "d.parts"
        with locked(folder):
            check_settings({}, root, folder, ())
            join_shards(split(4, 2), folder, root, {"version": version, "settings": {}}, ())

    save = _join

    def version(self) -> int:
        """Read as the next `collect` would: in a process of its own, for Arrow has threads."""
        ending = in_child(self._read, 60)
        if ending.kind != "done":
            raise AssertionError(str(ending))
        return ending.value

    def _read(self) -> int:
        from emu_embodied.data.frame_cache import build_frame_cache
        from emu_embodied.data.lerobot_files import SIDECAR
        from emu_embodied.data.lerobot_format import read_notes
        from emu_embodied.rollouts.collection.shards import check_settings

        check_settings({}, self.folder / "d", self.folder / "d.parts", ())
        if (episodes := build_frame_cache(self.folder / "d").episodes) != 4:
            raise AssertionError(f"{episodes} episodes")
        return read_notes(self.folder / "d" / SIDECAR)["version"]


class ReportSaver(Saver):
    """Writes the page of one planned run again and again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.run, self.page = planned_run(folder), folder / "page.html"
        self.save(0)

    def save(self, version: int) -> None:
        from emu_embodied.rollouts.viewer.html_report import read_run, write_report

        write_report(read_run(self.run), self.page, f"version={version}")

    def version(self) -> int:
        text = self.page.read_text()
        if not text.rstrip().endswith("</html>"):
            raise AssertionError("half a page")
        return int(text.partition("version=")[2].partition("<")[0])


class TrainingSaver(Saver):
    """A stage of training that saves after each step; killed and continued, it must end in the same weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rounds = 0
        self._train_in_child("whole")
        self.whole = load_folder(folder / "whole" / "toy")[0]

    def _train(self, name: str) -> None:
        from emu_embodied.training.loop import LoopConfig, train_stage

        def loss(module: torch.nn.Module, step: int):
            x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
            return module(x).square().mean(), {}

        torch.manual_seed(0)
        config = LoopConfig(steps=12, learning_rate=0.1, warmup=1, save_every=1, log_every=100)
        train_stage("toy", torch.nn.Linear(64, 64), loss, config, self.folder / name, report=lambda line: None)

    def save(self, version: int) -> None:
        self._train(str(self.rounds))

    def _train_in_child(self, name: str) -> None:
        """Autograd has threads, which no fork after it would have."""
        ending = in_child(lambda: self._train(name), 120)
        if ending.kind != "done":
            raise AssertionError(str(ending))

    def version(self) -> int:
        self._train_in_child(str(self.rounds))
        found = load_folder(self.folder / str(self.rounds) / "toy")[0]
        for entry, tensors in self.whole.items():
            if not all(torch.equal(tensor, found[entry][key]) for key, tensor in tensors.items()):
                raise AssertionError(f"other {entry} than the undisturbed stage's")
        self.rounds += 1
        return self.rounds

    def litter(self) -> list[str]:
        return [path.name for path in self.folder.rglob(".*")]


SAVERS: dict[str, type[Saver]] = {
    "checkpoint": CheckpointSaver,
    "model card": CardSaver,
    "journal": JournalSaver,
    "training state": TrainingSaver,
    "report": ReportSaver,
    "dataset": DatasetSaver,
}


@battery(
    "kills",
    fault="kill -9 while saving (random moments)",
    expected="the previous checkpoint loads, and the next save leaves no litter; the same of model cards, journals, training "
    "states, datasets and reports",
    bar="200/200",
    n=200,
)
def kills(job: Job) -> Iterator[Trial]:
    """Kills a process that saves one thing again and again; then loads, and saves in peace."""
    kinds = job.chance.sample(sorted(SAVERS), len(SAVERS))
    for index, kind in enumerate(kinds):
        rounds = job.n // len(kinds) + (index < job.n % len(kinds))
        if rounds == 0:
            continue
        place = job.folder / kind.replace(" ", "-")
        place.mkdir()
        try:
            saver = SAVERS[kind](place)
        except NotRun as absent:
            yield Trial(kind, None, found=str(absent))
            continue
        last = saver.version()
        for _ in range(rounds):
            moment = job.chance.uniform(0, saver.seconds)
            trial, last = _kill_saving(kind, saver, last, moment)
            yield trial


def _kill_saving(kind: str, saver: Saver, last: int, moment: float) -> tuple[Trial, int]:
    def save_on() -> None:
        version = last
        while True:
            version += 1
            saver.save(version)

    what = f"{kind} killed after {moment:.3f} s"
    fork_until_killed(save_on, moment)
    try:
        version = saver.version()
        if version < last:
            return Trial(what, False, found=f"version {version} after {last}"), version
        if kind != "training state":
            ending = in_child(lambda: saver.save(version + 1), 60)
            if ending.kind != "done":
                return Trial(what, False, found=f"the next save: {ending}"), version
        litter = saver.litter()
        return Trial(what, not litter, found=f"litter: {litter}" if litter else ""), saver.version()
    except Exception as error:
        return Trial(what, False, found=f"{type(error).__name__}: {error}"[:300]), last


def planned_run(folder: Path) -> Path:
    """A folder that `plan` wrote with a tiny model, one recorded episode."""
    checkpoint = tiny_checkpoint(folder / "tiny")
    words = ["plan", f"checkpoint={checkpoint}", f"out={folder / 'runs'}", "episodes=1", "videos=1", "steps=2", *BUDGET]
    ending = in_child(lambda: call_main(words), 240)
    if ending.kind != "done" or ending.value["code"] != 0:
        raise NotRun(f"no run could be planned: {ending}")
    (run,) = (folder / "runs").iterdir()
    return run


BUDGET = ["candidates=4", "elites=2", "iterations=1", "horizon=3"]


def tiny_checkpoint(path: Path) -> Path:
    """A checkpoint of the table-top with random weights."""
    model = tiny_world_model()
    world = replace(model.world, objects=dict(model.world.objects))
    save_checkpoint(path, model.tokenizer, model.text, model.model, world, {})
    return path


@battery(
    "training",
    fault="kill -9 while training",
    expected="resume is bit-identical on the CPU (weights, optimiser and step; all randomness follows from the step)",
    bar="20/20",
    n=20,
)
def training(job: Job) -> Iterator[Trial]:
    """Kills `train preset=tiny` up to three times, and lets the same command end; its states are the undisturbed run's."""
    from tiny_training import frames

    from emu_embodied.data.frame_cache import save_frame_cache

    save_frame_cache(job.folder / "frames", frames())

    def words(out: str) -> list[str]:
        return ["train", "preset=tiny", f"frames={job.folder / 'frames'}", "threads=1", f"out={job.folder / out}"]

    whole = in_child(lambda: call_main(words("whole")), 300)
    if whole.kind != "done" or whole.value["code"] != 0:
        raise NotRun(f"a tiny training could not be made: {whole}")
    for index in range(job.n):
        moments = [job.chance.uniform(0.05, whole.seconds) for _ in range(job.chance.randint(1, 3))]
        out, what = f"killed-{index}", "train killed after " + ", ".join(f"{moment:.2f} s" for moment in moments)
        for moment in moments:
            fork_until_killed(lambda out=out: call_main(words(out)), moment)
        end = in_child(lambda out=out: call_main(words(out)), 300)
        if end.kind != "done" or end.value["code"] != 0:
            yield Trial(what, False, found=str(end))
            continue
        other = _differing(job.folder / "whole", job.folder / out)
        yield Trial(what, not other, found=other)


def _differing(one: Path, other: Path) -> str:
    """The first tensor of two runs' checkpoints and training states that is not the same bit for bit."""
    for name in sorted(path.parent.relative_to(one) for path in one.rglob("manifest.json")):
        here, there = load_folder(one / name)[0], load_folder(other / name)[0]
        for entry, tensors in here.items():
            for key, tensor in tensors.items():
                if not torch.equal(tensor, there[entry][key]):
                    return f"{name}: {entry} {key} differs"
    return ""


@battery(
    "recording",
    fault="recording killed",
    expected="every saved episode is readable and the same call goes on; at most the part at work is lost",
    bar="loses at most the current one",
    n=10,
)
def recording(job: Job) -> Iterator[Trial]:
    """Kills `collect`, with parts of two episodes, and lets the same call end; its episodes are the undisturbed call's."""
    whole = in_child(lambda: _collect(job.folder / "whole"), 300)
    if whole.kind != "done":
        raise NotRun(f"nothing could be recorded: {whole}")
    for index in range(job.n):
        root, moment = job.folder / f"killed-{index}", job.chance.uniform(0.3, 1.0) * whole.seconds
        fork_until_killed(lambda root=root: _collect(root), moment)
        saved = len([*root.with_name(root.name + ".parts").glob("part-?????")])
        ending = in_child(lambda root=root: _collect(root), 300)
        what = f"collect killed after {moment:.1f} s, {saved} of 3 parts saved"
        if ending.kind != "done":
            yield Trial(what, False, found=str(ending))
            continue
        same = ending.value == whole.value
        yield Trial(what, same, found="" if same else f"{ending.value} instead of {whole.value}")


def _collect(root: Path) -> str:
    """Collects six short episodes, and tells what they say: a digest of every frame, action and label."""
    import hashlib

    from emu_embodied.data.frame_cache import build_frame_cache
    from emu_embodied.rollouts.collection import collect as module

    module.EPISODES_PER_SHARD = 2
    options = {"image_size": 16}
    module.collect("emu_embodied/TabletopPush-v0", options, 6, 6, root, seed=40, workers=1, progress=False)
    cache = build_frame_cache(root)
    digest = hashlib.sha256()
    for column in (cache.pixels, cache.actions, cache.states, cache.rewards, cache.successes, cache.episode_starts):
        digest.update(np.ascontiguousarray(column).tobytes())
    return f"{cache.episodes} episodes, {digest.hexdigest()[:16]}"
