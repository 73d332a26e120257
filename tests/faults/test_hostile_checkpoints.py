"""Hostile checkpoints: one typed error each, in time, in memory, and nothing in them runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import hostile
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from tiny import WORLD, tiny_world_model
from tokenizers import Tokenizer

import emu_embodied.envs  # noqa: F401  registers them
from emu_embodied import load
from emu_embodied.baselines.goal_cloning import ClonedPolicy, CloningConfig, load_policy, save_policy
from emu_embodied.baselines.probes import InverseDynamics, ProbeConfig, Probes, StateProbe, load_probes, save_probes
from emu_embodied.checkpoint import World, add_card, fingerprint, load_checkpoint, restore, save_checkpoint
from emu_embodied.commands import main
from emu_embodied.commands.train import _world
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.envs.opening import open_env
from emu_embodied.envs.registration import make_registered
from emu_embodied.errors import CheckpointError, ConfigError, DatasetError, EmuEmbodiedError, InputError
from emu_embodied.loading import load_proposer
from emu_embodied.policies.costs import RewardHead
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.rollouts.agents.lerobot import policy_label
from emu_embodied.rollouts.collection.collect import read_summary
from emu_embodied.rollouts.collection.shards import check_settings
from emu_embodied.rollouts.evaluation.journal import open_journal
from emu_embodied.rollouts.object_detection import detector_named
from emu_embodied.shipped import SHIPPED
from emu_embodied.storage.files import Folder
from emu_embodied.storage.schema import build
from emu_embodied.tokenizers.frames import FrameTokenizerConfig
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.pipeline import keep_shift
from emu_embodied.types import Observation

TRIALS = int(os.environ.get("EMU_EMBODIED_HOSTILE_TRIALS", "40"))


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    model, folder = tiny_world_model(), tmp_path_factory.mktemp("intact") / "checkpoint"
    save_checkpoint(folder, model.tokenizer, model.text, model.model, model.world, {})
    return folder


@pytest.fixture
def copy(intact, tmp_path) -> Path:
    """A copy of a checkpoint with a package in it that leaves a mark where it is imported."""
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)
    (folder / "gift").mkdir()
    (folder / "gift" / "__init__.py").write_text(hostile.CODE)
    return folder


def setting(folder: Path, path: tuple, value: object) -> Path:
    hostile.edit_json(folder, "config.json", lambda document: hostile.put(document, path, value))
    return folder


# Any content


@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/statm").exists(), reason="forks, and reads /proc")
def test_each_hostile_checkpoint_is_one_typed_error_or_harmless(intact, tmp_path):
    outcomes = list(hostile.trials(intact, tmp_path, TRIALS, seed=TRIALS))
    assert len(outcomes) == TRIALS and not [outcome for outcome in outcomes if outcome.fault]
    refused = [outcome for outcome in outcomes if outcome.result != "loaded"]
    assert len(refused) > len(outcomes) / 2


def test_mutations_are_many_and_the_seed_decides_which():
    names = [name for name, _ in hostile.fixed_mutations()]
    assert len(set(names)) == len(names) > 330
    first, again, other = ([name for name, _ in hostile.mutations(seed, 50)] for seed in (1, 1, 2))
    assert first == again != other and len(first) == 50


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("model", "text_length"), 10**9, "model.text_length: 1000000000"),
        (("model", "transformer", "num_hidden_layers"), 10**6, "model.transformer.num_hidden_layers: 1000000"),
        (("model", "transformer", "num_hidden_layers"), 3, "token_model.safetensors: no transformer.model.layers.2."),
        (
            ("model", "transformer", "hidden_size"),
            64,
            "hidden_token: float32 of shape (32,); its configuration asks for",
        ),
        (("model", "transformer", "rms_norm_eps"), "x", "model.transformer.rms_norm_eps: x"),
        (("tokenizer", "encoder_layers"), 10**6, "tokenizer.encoder_layers"),
        (("tokenizer", "levels"), [16, 1], "tokenizer.levels: 1; give a whole number from 2"),
        (("model", "previous_frame_source"), "yes", "model.previous_frame_source: yes; must be true or false"),
        (("model", "unknown"), 1, "model: an unknown key 'unknown'"),
        (("world", "objects"), {"pusher": [0, 0, 256]}, "world.objects.pusher: 256"),
        (("world", "objects"), {"pusher": [0, 0, 0]}, "model.objects"),
        (("world", "position_scale"), [0, 1], "world.position_scale: 0.0"),
        (("world", "landmarks"), {"tip": "T"}, "world.landmarks: "),
        (("world", "action_scale"), [[[0.0], [1.0]]], "world.action_scale"),
        (("world", "action_names"), [["x", "y"]], "world.action_names"),
        (("training",), None, "training: None"),
    ],
)
def test_the_whole_configuration_is_checked_and_the_field_is_named(copy, path, value, named):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(setting(copy, path, value))
    assert named in str(caught.value) and str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_kind_are_refused_before_they_are_read(copy):
    file, size = copy / "token_model.safetensors", 1 << 40
    hostile.edit_header(copy, file.name, lambda header, body: [e.update(dtype="I32") for e in header.values()] and None)
    with pytest.raises(CheckpointError, match="int32 of shape .* asks for float32"):
        load_checkpoint(copy)
    with file.open("r+b") as opened:
        opened.truncate(size)  # takes no space on the disk, and would take all memory
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][file.name]["bytes"] = size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=file.name):
        load_checkpoint(copy)


def test_a_module_is_tried_without_memory_and_without_randomness(intact):
    model = tiny_world_model()
    torch.manual_seed(3)
    expected = torch.rand(3), torch.rand(3)
    made = []

    def make():
        made.append(torch.empty(0).device.type)
        return type(model.model)(model.model.config) if made[-1] == "meta" else model.model

    torch.manual_seed(3)
    first = torch.rand(3)
    restore(Folder(intact), "token_model", make)
    assert made == ["meta", "cpu"] and torch.equal(first, expected[0]) and torch.equal(torch.rand(3), expected[1])


# Code


@pytest.mark.parametrize("name", hostile.ENV_IDS)
def test_an_id_of_a_file_imports_nothing(copy, name, monkeypatch):
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    monkeypatch.setenv("HOSTILE_MARK", str(copy / "mark"))
    with pytest.raises(EmuEmbodiedError) as caught:
        ImaginedEnv(load(setting(copy, ("world", "env_id"), name), device="cpu")).reset(seed=0)
    assert type(caught.value) in (CheckpointError, InputError) and not (copy / "mark").exists()
    with pytest.raises(InputError, match="real_env"):
        make_registered(name)
    assert not (copy / "mark").exists() and "gift" not in sys.modules


def test_commands_run_no_code_of_a_checkpoint_they_stand_in(copy):
    setting(copy, ("world", "env_id"), "gift:Zork-v0")
    environment = {**os.environ, "HOSTILE_MARK": str(copy / "mark")}
    root = Path(emu_embodied.__file__).resolve().parents[1]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    script = "import sys; from emu_embodied.commands import main\nfor verb in sys.argv[1:]: print(main(verb.split()))"
    verbs = ("play checkpoint=.", "imagine checkpoint=. episodes=1", "evaluate checkpoint=.", "subgoal checkpoint=.")
    done = subprocess.run(
        [sys.executable, "-c", script, *verbs], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split()[-4:] == ["2"] * 4 and "Traceback" not in done.stderr
    assert done.stderr.count("world.env_id: gift:Zork-v0") == 4
    command = [sys.executable, "-m", "emu_embodied", "imagine", "checkpoint=.", "episodes=1"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "world.env_id" in done.stderr
    assert not (copy / "mark").exists()


def test_a_module_that_the_user_names_is_the_users(copy, monkeypatch):
    monkeypatch.syspath_prepend(str(copy))
    monkeypatch.setenv("HOSTILE_MARK", str(copy / "mark"))
    with pytest.raises(InputError, match="real_env"):
        ImaginedEnv(tiny_world_model(), "gift:Zork-v0").reset(seed=0)
    assert (copy / "mark").exists()
    sys.modules.pop("gift")


def test_what_is_imported_for_an_env_does_not_enter_the_checkpoint():
    @dataclass
    class Cache:
        names: dict
        action_scale: np.ndarray

    from omegaconf import OmegaConf

    described = {"objects": {"pusher": [1, 2, 3]}, "position_scale": [1.0, -1.0], "action_names": ["x", "y"]}
    env = {"id": "mine:Own-v0", "world": described | {"eye": "colours", "landmarks": {}}}
    cache = Cache({"state": ["pusher.x"], "action": ["x", "y"]}, np.array([[[0, 0], [1, 1]]]))
    assert _world(OmegaConf.create({"env": env}), cache).env_id == "Own-v0"
    with pytest.raises(ConfigError, match="env_id"):
        World({}, (1.0, -1.0), "mine:Own-v0")


def test_an_eye_is_one_of_those_there_are():
    with pytest.raises(InputError, match="eye: os:system; choose among: colours, pusht"):
        detector_named("os:system")


# Text


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.iterdir()))
def test_a_text_tokenizer_reads_as_the_library_reads_it(name):
    text = json.loads((SHIPPED / name / "text.json").read_text())["tokenizer"]
    ours, theirs = TextTokenizer.from_json(text), Tokenizer.from_str(text)
    for sentence in ("push the red cube to the left", "Ä ö  \t\n é€ 🤖", "", "x" * 300, "bring the blue block!"):
        assert ours.encode(sentence) == theirs.encode(sentence).ids
        assert ours.decode(ours.encode(sentence)) == theirs.decode(theirs.encode(sentence).ids).removeprefix(" ")
    assert ours.size == theirs.get_vocab_size() and json.loads(ours.to_json()) == json.loads(text)


# Names of weights


def test_a_fingerprint_reads_the_manifest_alone(copy):
    name = fingerprint(copy)
    assert len(name) == 12 and int(name, 16) >= 0
    os.mkfifo(copy / "zz.safetensors")
    (copy / "yy.safetensors").symlink_to("/dev/zero")
    (copy / "token_model.safetensors").rename(copy / "elsewhere")
    os.mkfifo(copy / "token_model.safetensors")
    assert fingerprint(copy) == name
    os.remove(copy / "token_model.safetensors")
    (copy / "elsewhere").rename(copy / "token_model.safetensors")
    add_card(copy, "# A card\n", {"figures": []})
    assert fingerprint(copy) == name
    hostile.edit_header(copy, "token_model.safetensors", lambda header, body: (header, bytes(len(body))))
    assert fingerprint(copy) != name


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(copy, kind):
    for name in ("config.json", "token_model.safetensors", "manifest.json"):
        file = copy / name
        kept = file.read_bytes()
        file.unlink()
        {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](file)
        with pytest.raises(CheckpointError, match=name if name != "manifest.json" else "copy"):
            load(copy, device="cpu")
        shutil.rmtree(file) if kind == "folder" else file.unlink()
        file.write_bytes(kept)


# Numbers that are none


def broken(head: str):
    """A model whose head has finite weights that no number comes of."""
    model = tiny_world_model()
    parts = {
        "reward": model.model.heads.value[-1].weight[:1],
        "success": model.model.heads.value[-1].weight[1:],
        "positions": model.model.heads.offset.weight,
        "presence": model.model.heads.presence.weight,
        "logits": model.model.transformer.lm_head.weight,
    }
    if head in ("reward", "success"):
        torch.nn.init.constant_(model.model.heads.value[-3].bias, 1e3)
    with torch.no_grad():
        parts[head].copy_(torch.full_like(parts[head], 3e38))
    return model


@pytest.mark.parametrize("head", ["reward", "success", "positions", "presence", "logits"])
def test_an_estimate_that_is_no_number_is_named(head):
    model = broken(head)
    seen = Observation(np.full((64, 64, 3), 90, np.uint8), np.zeros(2, np.float32), "push the red cube to the left")
    history, still = model.encode([seen]), np.zeros((1, 2), np.float32)
    match = rf"checkpoint: {head}"
    with pytest.raises(CheckpointError, match=match):
        model.step(history, still)
    with pytest.raises(CheckpointError, match=r"checkpoint: (entropy|logits)" if head == "logits" else match):
        model.soft_rollout(history, torch.zeros(1, 1, 1, 2))
    with pytest.raises(CheckpointError, match=match):
        CEM(CEMConfig(candidates=4, horizon=2, iterations=1, elites=1)).plan(model, history, RewardHead())
    options = {"observation": {"pixels": seen.pixels, "agent_pos": seen.agent_pos}, "instruction": seen.instruction}
    for env in (
        gymnasium.make("emu_embodied/Imagined-v0", world_model=model),
        gymnasium.make_vec("emu_embodied/Imagined-v0", num_envs=2, world_model=model),
    ):
        env.reset(seed=0, options=options)
        with pytest.raises(CheckpointError, match=match):
            env.step(np.zeros(env.action_space.shape, np.float32))
        env.close()


def test_a_frame_tokenizer_that_gives_no_numbers_is_named():
    model = tiny_world_model()
    with torch.no_grad():
        for parameter in model.tokenizer.parameters():
            parameter.fill_(3e38)
    seen = Observation(np.full((64, 64, 3), 90, np.uint8), np.zeros(2, np.float32), "")
    with pytest.raises(CheckpointError, match="checkpoint: frame codes: NaN"):
        model.encode([seen])
    with pytest.raises(CheckpointError, match="checkpoint: frames: NaN"):
        model.decode(torch.zeros(1, 16, dtype=torch.int64))


# What stands beside world models


@pytest.mark.parametrize(
    "change", [{"width": 10**9}, {"image_size": -1}, {"hidden": "x"}, {"more": 1}, {"action_dim": 3}, None]
)
def test_other_checkpoints_are_checked_alike(tmp_path, change):
    config = ProbeConfig(16, ("a", "b"), 2, width=4, points=4)
    save_policy(tmp_path / "policy", ClonedPolicy(CloningConfig(16, 2, width=4, hidden=8)), {})
    save_probes(tmp_path / "probes", Probes(config, InverseDynamics(config), StateProbe(config), {"action": 0.1}), {})
    for name, read in (("policy", load_policy), ("probes", load_probes)):
        read(tmp_path / name)
        changed = {"points": "x"} if change == {"hidden": "x"} and name == "probes" else change
        hostile.edit_json(
            tmp_path / name,
            "config.json",
            lambda document, name=name, changed=changed: document.update({name: changed and document[name] | changed}),
        )
        with pytest.raises(CheckpointError, match=str(tmp_path / name)):
            read(tmp_path / name)


def test_what_stands_beside_datasets_and_policies_is_checked_too(tmp_path, copy):
    for read in (read_summary, lambda root: check_settings({"env_id": "x"}, root, tmp_path / "parts", ())):
        for document in ({}, {"summary": 5, "settings": 5}, {"summary": {"episodes": "1"}, "settings": []}):
            (tmp_path / "data" / "meta").mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / "meta" / "emu_embodied.json").write_text(json.dumps(document))
            with pytest.raises(DatasetError):
                read(tmp_path / "data")
    os.mkfifo(copy / "zz.json")
    os.mkfifo(copy / "zz.safetensors")
    assert policy_label(copy).startswith(str(copy))
    (tmp_path / "journal.jsonl").write_text('{"settings": [1]}\n')
    with pytest.raises(ConfigError, match="journal"):
        open_journal(tmp_path / "journal.jsonl", {"a": 1})
    for words in (5, "red", [["red"]]):
        with pytest.raises(CheckpointError, match="training.words"):
            load_proposer(setting(copy, ("training", "words"), words), device="cpu")
    for recipe in (None, 5, {"trajectory": []}, {"trajectory": {"autoregressive_until": "x"}}):
        assert keep_shift({"training": {"recipe": recipe}, "model": {"next_token_shift": False}})


@pytest.mark.parametrize(
    "document", [[], {}, {"base": 5}, {"model": []}, {"model": {"transformer": {"vocab_size": 0}}}]
)
def test_the_doctor_refuses_what_is_no_configuration(copy, document, capsys):
    (copy / "config.json").write_text(json.dumps(document))
    assert main(["doctor", f"checkpoint={copy}"]) == 2
    assert str(copy / "config.json") in capsys.readouterr().err


# The mechanism


@dataclass(frozen=True)
class Part:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    part: Part
    names: tuple[str, ...]
    pair: tuple[float, int]
    table: dict[str, Part]
    maybe: str | None = None
    flag: bool = False


GOOD = {"part": {"size": 3}, "names": ["a"], "pair": [1, 2], "table": {"x": {"size": 1, "share": 2}}}


def test_a_dataclass_is_built_from_json():
    assert build(Whole, GOOD, "w") == Whole(Part(3), ("a",), (1.0, 2), {"x": Part(1, 2.0)})
    assert build(Whole, GOOD | {"maybe": "m", "flag": True}, "w").maybe == "m"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"part": {"size": 3.0}}, "w.part.size: 3.0; must be a whole number"),
        ({"part": {"size": True}}, "w.part.size"),
        ({"part": {}}, "w.part: no size"),
        ({"part": {"size": 1, "share": 10**400}}, "w.part.share"),
        ({"part": {"size": 1, "share": float("nan")}}, "w.part.share"),
        ({"part": [1]}, "w.part: [1]; must be a JSON object"),
        ({"names": "abc"}, "w.names: abc; must be a list of values"),
        ({"names": ["a", 1]}, "w.names[1]: 1; must be a plain text"),
        ({"names": ["a\0"]}, "w.names[0]"),
        ({"names": ["a"] * 5000}, "w.names"),
        ({"pair": [1]}, "w.pair"),
        ({"pair": [1, 2.5]}, "w.pair[1]"),
        ({"table": {"x": {"size": "1"}}}, "w.table.x.size"),
        ({"table": []}, "w.table"),
        ({"maybe": 5}, "w.maybe: 5; must be a plain text"),
        ({"flag": 1}, "w.flag: 1; must be true or false"),
        ({"flagg": True}, "did you mean flag?"),
    ],
)
def test_what_does_not_fit_an_annotation_is_named(change, named):
    with pytest.raises(CheckpointError) as caught:
        build(Whole, GOOD | change, "w")
    assert named in str(caught.value)


@pytest.mark.parametrize("levels", [(), (1,), (8, 1), (8, 8.0), (True, 8), (1 << 11, 1 << 11), [8, 8]])
def test_levels_that_quantise_nothing_are_refused(levels):
    with pytest.raises(ConfigError, match="levels"):
        FrameTokenizerConfig(levels=levels)


def test_the_tables_world_fits():
    assert WORLD.env_id in gymnasium.registry


@pytest.mark.parametrize("env_id", ["Unmade-v0", "phys2d/CartPole-v0"])
def test_a_registered_env_that_cannot_be_made_is_one_typed_error(env_id, monkeypatch):
    def fail():
        raise AssertionError("no such robot")

    monkeypatch.setitem(sys.modules, "jax", None)  # phys2d needs it
    monkeypatch.setitem(gymnasium.registry, "Unmade-v0", EnvSpec("Unmade-v0", entry_point=fail))
    for make in (open_env, make_registered):
        with pytest.raises(ConfigError, match=f"{env_id}; (it cannot be made, AssertionError: no such robot|.*jax.*Install)"):
            make(env_id)
