"""A run folder knows its run: another one is refused by name, a finished one is not trained again, and one process is in it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import OBJECTS, WORLD, digest, frames, quiet, tiny_recipe

import emu_embodied
from emu_embodied.checkpoint import World, load_checkpoint
from emu_embodied.commands import main
from emu_embodied.data.frame_cache import content_digest, save_frame_cache
from emu_embodied.errors import CheckpointError, ConfigError, DatasetError
from emu_embodied.storage.runs import locked, refuse_other
from emu_embodied.training.folder import ROOMS, TrainingRun
from emu_embodied.training.loop import LoopConfig
from emu_embodied.training.pipeline import adapt_checkpoint, continue_checkpoint, train_checkpoint
from emu_embodied.training.stages.cloning import train_cloning
from emu_embodied.training.stages.probes import train_probes

SHORT = LoopConfig(2, warmup=1, log_every=1, save_every=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a world model, for all that only looks at it."""
    folder = tmp_path_factory.mktemp("finished")
    train_checkpoint(frames(), tiny_recipe(), WORLD, quiet(folder))
    return folder


def other_actions(cache):
    return replace(cache, actions=np.roll(cache.actions, 1, 0))


def other_texts(cache):
    return replace(cache, instructions=("push it",) * cache.episodes)


def other_scale(cache):
    return replace(cache, action_scale=np.stack([np.zeros(2), np.full(2, 0.05)]).astype(np.float32)[None])


def other_names(cache):
    return replace(cache, names={**cache.names, "action": ["a", "b"]})


def test_the_code_that_a_run_knows_is_that_which_makes_its_weights():
    """Rooms may be moved; what a training imports of model and decoding has to stay among them."""
    root = Path(emu_embodied.__file__).parent
    known = {path for room in ROOMS for path in (root / room).glob("*.py")}
    assert all((root / room).is_dir() for room in ROOMS)
    needed = ("model/token_model", "model/noise", "training/loop", "training/stages/trajectory", "training/stages/language")
    needed += ("inference/frame_step", "inference/decoding/dida", "tokenizers/frames", "emu35/lora", "world_model")
    assert {root / f"{name}.py" for name in needed} <= known


@pytest.mark.parametrize("change", [other_actions, other_texts, other_scale, other_names])
def test_another_dataset_is_refused_where_a_run_was_finished(finished, change):
    before = digest(finished / "checkpoint")
    with pytest.raises(CheckpointError, match=r"data\.digest.*use another out="):
        train_checkpoint(change(frames()), tiny_recipe(), WORLD, quiet(finished))
    assert digest(finished / "checkpoint") == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("held_out", 3),
        ("tokenizer_batch", 4),
        ("text_size", 290),
        ("context_frames", 1),
        ("trajectory.position", 9.0),
        ("trajectory.batch", 3),
        ("tokenizer.width", 24),
    ],
)
def test_another_recipe_is_refused_by_the_name_of_each_field(finished, field, value):
    recipe, (part, _, name) = tiny_recipe(), field.rpartition(".")
    changed = replace(recipe, **{part: replace(getattr(recipe, part), **{name: value})} if part else {name: value})
    with pytest.raises(CheckpointError, match=re.escape(f"recipe.{field}: {value}")):
        train_checkpoint(frames(), changed, WORLD, quiet(finished))
    with pytest.raises(CheckpointError) as caught:
        train_checkpoint(frames(), replace(changed, text_length=20), WORLD, quiet(finished))
    assert {f"recipe.{field}", "recipe.text_length"} == set(caught.value.field.split(", "))


def test_another_world_or_version_or_stage_is_refused(finished, monkeypatch, tmp_path):
    job = (tiny_recipe(), WORLD, quiet(finished))
    with pytest.raises(CheckpointError, match=r"world\.env_id: mine"):
        train_checkpoint(frames(), tiny_recipe(), replace(WORLD, env_id="mine"), quiet(finished))
    with pytest.raises(CheckpointError, match="stage"):
        train_cloning(frames(), SHORT, quiet(finished), held_out=2)
    monkeypatch.setattr(emu_embodied, "__version__", "9.9.9")
    with pytest.raises(CheckpointError, match=r"code\.version: 9\.9\.9"):
        train_checkpoint(frames(), *job)


def test_a_finished_run_says_so_and_trains_nothing(finished):
    lines, before = [], digest(finished / "checkpoint")
    stamp = (finished / "checkpoint" / "manifest.json").stat().st_mtime_ns
    recipe = tiny_recipe()  # how often it is looked at changes nothing
    recipe = replace(recipe, trajectory_loop=replace(recipe.trajectory_loop, log_every=3, evaluate_every=7))
    path = train_checkpoint(frames(), recipe, WORLD, TrainingRun(finished, report=lines.append))
    assert digest(path) == before and (path / "manifest.json").stat().st_mtime_ns == stamp
    assert len(lines) == 1 and "finished already" in lines[0]


def test_a_lost_checkpoint_is_written_again_from_the_states(tmp_path):
    import shutil

    path = train_checkpoint(frames(), tiny_recipe(), WORLD, quiet(tmp_path))
    before = digest(path)
    shutil.rmtree(path)
    assert digest(train_checkpoint(frames(), tiny_recipe(), WORLD, quiet(tmp_path))) == before


def test_states_without_their_document_are_refused_and_a_failed_start_leaves_none(tmp_path):
    long = replace(frames(), instructions=("push the red cube to the left",) * 7 + ("x" * 99,))
    with pytest.raises(DatasetError, match="instruction of episode 7"):
        train_checkpoint(long, tiny_recipe(), WORLD, quiet(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    train_checkpoint(frames(), tiny_recipe(), WORLD, quiet(tmp_path / "run"))
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"older version.*another out="):
        train_checkpoint(frames(), tiny_recipe(), WORLD, quiet(tmp_path / "run"))


def test_probes_and_cloning_know_their_runs_too(tmp_path):
    cache, objects = frames(), ("pusher", "red")

    def probes(cache, **other):
        return train_probes(
            cache, objects, (16.0, -16.0), SHORT, quiet(tmp_path / "p"), **{"held_out": 2, "batch": 4} | other
        )

    def cloning(cache, **other):
        return train_cloning(cache, SHORT, quiet(tmp_path / "c"), **{"held_out": 2, "batch": 4} | other)

    for train in (probes, cloning):
        before = digest(train(cache))
        assert digest(train(cache)) == before
        for other, named in (({"batch": 5}, "batch: 5"), ({"held_out": 3}, "held_out: 3"), ({"seed": 1}, "seed: 1")):
            with pytest.raises(CheckpointError, match=named):
                train(cache, **other)
        with pytest.raises(CheckpointError, match="data.digest"):
            train(other_actions(cache))


def test_another_source_is_refused(finished, tmp_path):
    again = train_checkpoint(frames(), replace(tiny_recipe(), seed=5), WORLD, quiet(tmp_path / "again"))
    for train in (
        lambda source, out: adapt_checkpoint(frames(), tiny_recipe(), source, quiet(tmp_path / out)),
        lambda source, out: continue_checkpoint(frames(), tiny_recipe(), source, WORLD, quiet(tmp_path / out)),
    ):
        out = str(train)[-8:-1]
        train(finished / "checkpoint", out)
        with pytest.raises(CheckpointError, match="source: "):
            train(again, out)


def test_the_command_keeps_its_words_and_refuses_another_run_in_the_default_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_frame_cache(tmp_path / "one", frames())
    save_frame_cache(tmp_path / "two", other_actions(frames()))
    words = ["train", "preset=tiny", "recipe.tokenizer_loop.steps=2", "recipe.trajectory_loop.steps=2"]
    assert main([*words, "frames=one"]) == 0
    run = json.loads((tmp_path / "runs" / "train" / "run.json").read_text())
    assert (
        run["begun"]["config"]["frames"] == "one" and run["begun"]["config"]["recipe"]["tokenizer_loop"]["steps"] == 2
    )
    assert run["begun"]["command"] and {"torch", "emu-embodied"} <= run["begun"]["versions"].keys()
    before = digest(tmp_path / "runs" / "train" / "checkpoint")
    capsys.readouterr()
    assert main([*words, "frames=two"]) == 2
    error = capsys.readouterr().err
    assert "frames: two; " in error and "'one'" in error and "use another out=" in error and len(error.splitlines()) == 1
    save_frame_cache(tmp_path / "one", other_texts(frames()))  # another dataset where the same words find it
    assert main([*words, "frames=one"]) == 2 and "data.digest" in capsys.readouterr().err
    save_frame_cache(tmp_path / "one", frames())
    assert main([*words, "frames=one", "recipe.seed=3"]) == 2 and "recipe.seed: 3" in capsys.readouterr().err
    assert main([*words, "frames=one"]) == 0 and "finished already" in capsys.readouterr().out
    assert digest(tmp_path / "runs" / "train" / "checkpoint") == before


def test_a_second_training_in_a_folder_is_told_who_is_there(tmp_path):
    hold = (
        "import sys, pathlib; from emu_embodied.storage.runs import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'training'):\n    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"another training is at work in this folder \(pid {other.pid}\)"):
            train_checkpoint(frames(), tiny_recipe(), WORLD, quiet(tmp_path / "run"))
    finally:
        other.communicate("")
    with locked(tmp_path / "run", "training"), locked(tmp_path / "run", "training"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine", "training"):
        pass
    assert not list((tmp_path / "mine").iterdir())  # the lock goes, a folder that was there stays


def test_a_killed_training_leaves_no_lock_behind(tmp_path):
    kill = (
        "import os, sys, pathlib; from emu_embodied.storage.runs import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'training'):\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", kill, str(tmp_path / "run")], check=False)
    with locked(tmp_path / "run", "training"):
        pass


def test_settings_are_compared_both_ways_and_every_difference_is_named():
    then = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": 3}
    refuse_other(then, then, "HERE", "use another out=")
    with pytest.raises(ConfigError) as caught:
        refuse_other({"a": 2, "b": {"c": (1, 2), "d": "y"}}, then, "HERE", "use another out=")
    assert caught.value.field == "a, b.d, gone"
    assert "[2, 'y', None]" in str(caught.value) and "[1, 'x', 3]" in str(caught.value) and "HERE" in str(caught.value)


def test_the_digest_of_frames_is_of_all_that_training_reads():
    cache = frames()
    found = {
        content_digest(cache),
        content_digest(replace(cache, fps=5)),
        content_digest(replace(cache, pixels=cache.pixels ^ 1)),
    }
    found |= {content_digest(change(cache)) for change in (other_actions, other_texts, other_scale, other_names)}
    found |= {content_digest(replace(cache, successes=~cache.successes)), content_digest(cache.select(range(7)))}
    assert len(found) == 9 and content_digest(frames()) == content_digest(cache.select(range(8)))


# A checkpoint trained on with one's own data


def test_a_checkpoint_is_trained_on_with_data_in_other_units_and_without_labels(finished, tmp_path, capsys):
    cache = other_scale(frames(12))
    mine = replace(
        cache, states=cache.states[:, :0], names={"state": [], "action": ["left", "up"], "agent_pos": []}, known=None
    )
    save_frame_cache(tmp_path / "mine", mine)
    words = [
        "train",
        "preset=tiny",
        f"from={finished / 'checkpoint'}",
        f"frames={tmp_path / 'mine'}",
        f"out={tmp_path / 'out'}",
    ]
    assert main([*words, "recipe.trajectory_loop.steps=6", "recipe.context_frames=0"]) == 0
    tokenizer, text, model, world, config = load_checkpoint(tmp_path / "out" / "checkpoint")
    old_tokenizer, old_text, old_model, *_ = load_checkpoint(finished / "checkpoint")
    assert world.objects == {} and list(world.action_names) == ["left", "up"]
    assert np.allclose(world.action_scale, mine.action_scale)
    assert text.to_json() == old_text.to_json()
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.parameters(), old_tokenizer.parameters(), strict=True))
    assert model.config.context_frames == old_model.config.context_frames == 2  # its own, not the preset's
    assert config["training"]["recipe"]["context_frames"] == 2 and config["training"]["source"]
    near = dict(old_model.named_parameters())
    apart = [(p - near[n]).abs().max().item() for n, p in model.named_parameters() if not n.startswith("heads.")]
    assert 0 < max(apart) < 0.1  # it went on from the source's weights
    for more, said in (([], "finished already"), (["stage=trajectory"], "finished already")):
        capsys.readouterr()
        assert main([*words, "recipe.trajectory_loop.steps=6", "recipe.context_frames=0", *more]) == 0
        assert said in capsys.readouterr().out


def test_heads_stay_where_the_data_label_the_same_things(finished, tmp_path):
    recipe = tiny_recipe()
    still = replace(recipe, trajectory_loop=replace(recipe.trajectory_loop, steps=1, learning_rate=0.0))
    path = continue_checkpoint(frames(10), still, finished / "checkpoint", WORLD, quiet(tmp_path / "same"))
    before, after = load_checkpoint(finished / "checkpoint")[2], load_checkpoint(path)[2]
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    less = World({name: OBJECTS[name] for name in ("pusher", "red")}, (16.0, -16.0), "", ("x", "y"))
    path = continue_checkpoint(frames(10), still, finished / "checkpoint", less, quiet(tmp_path / "less"))
    other = load_checkpoint(path)[2]
    assert other.config.objects == ("pusher", "red")
    assert torch.equal(other.transformer.lm_head.weight, before.transformer.lm_head.weight)


def test_data_that_do_not_fit_a_checkpoint_are_refused_before_anything_is_written(finished, tmp_path):
    three = replace(
        frames(),
        actions=np.zeros((96, 3), np.float32),
        names={**frames().names, "action": ["a", "b", "c"]},
        action_scale=None,
    )
    small = replace(frames(), pixels=frames().pixels[:, :32, :32])
    for cache, said in ((three, "the checkpoint's have 2 values"), (small, "takes 64 px"), (frames(4), "held_out=0")):
        with pytest.raises(DatasetError, match=said):
            continue_checkpoint(cache, tiny_recipe(), finished / "checkpoint", WORLD, quiet(tmp_path / "out"))
        with pytest.raises(DatasetError, match=said):
            adapt_checkpoint(cache, tiny_recipe(), finished / "checkpoint", quiet(tmp_path / "out"))
    with pytest.raises(DatasetError, match="action scale"):  # its world is the source's, and so are its units
        adapt_checkpoint(other_scale(frames()), tiny_recipe(), finished / "checkpoint", quiet(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# Inputs of all stages, before the first


@pytest.mark.parametrize("episode", [0, 7])
def test_a_text_that_is_too_long_is_found_before_anything_is_trained(tmp_path, episode):
    texts = list(frames().instructions)
    texts[episode] = "push the red cube " * 12
    lines = []
    with pytest.raises(DatasetError, match=f"instruction of episode {episode}.*at most 16 tokens.*recipe.text_length"):
        train_checkpoint(
            replace(frames(), instructions=tuple(texts)),
            tiny_recipe(),
            WORLD,
            TrainingRun(tmp_path / "out", report=lines.append),
        )
    assert not lines and not (tmp_path / "out").exists()


def test_labels_that_are_not_there_are_found_before_anything_is_trained(tmp_path):
    cache = frames()
    names = [name.replace("yellow.present", "yellow.seen") for name in cache.names["state"]]
    cache = replace(cache, names={**cache.names, "state": names})
    with pytest.raises(DatasetError, match=r"yellow\.present"):
        train_checkpoint(cache, tiny_recipe(), WORLD, quiet(tmp_path / "out"))
    with pytest.raises(DatasetError, match=r"yellow\.present"):
        train_probes(cache, tuple(OBJECTS), (16.0, -16.0), SHORT, quiet(tmp_path / "out"), held_out=2)
    assert not (tmp_path / "out").exists()


def test_nothing_held_out_trains_on_all_and_judges_nothing(tmp_path, capsys):
    save_frame_cache(tmp_path / "frames", frames())
    words = [
        "train",
        "preset=tiny",
        "recipe.tokenizer_loop.steps=2",
        "recipe.trajectory_loop.steps=2",
        "recipe.held_out=0",
    ]
    assert main([*words, f"frames={tmp_path / 'frames'}", f"out={tmp_path / 'out'}"]) == 0
    assert "held-out" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "out" / "checkpoint")[4]["training"]["recipe"]["held_out"] == 0
    assert main([*words[:-1], "recipe.held_out=8", f"frames={tmp_path / 'frames'}", f"out={tmp_path / 'few'}"]) == 2
    error = capsys.readouterr().err
    assert "recipe.held_out=" in error and "8 are held out" in error
