"""A released model, in the official format, becomes a world model: fine-tuned by the command, dreamt in, planned with."""

import json

import cv2
import gymnasium
import numpy as np
import pytest
import torch
from foreign import JOINTS, TOP, WRIST, write_foreign
from tiny_emu35_lm import write_released
from tiny_emu35_world import ADOPTION
from tiny_training import WORLD, frames, quiet

from emu_embodied.checkpoint import load_checkpoint
from emu_embodied.commands import main
from emu_embodied.data.frame_cache import save_frame_cache
from emu_embodied.emu35.action_adapter import AdoptionConfig, adopt
from emu_embodied.emu35.checkpoint import Base, load_adapted
from emu_embodied.emu35.loading import load as load_released
from emu_embodied.emu35.lora import LoRAConfig, add_adapters, merge_adapters
from emu_embodied.errors import CheckpointError, ConfigError, InputError
from emu_embodied.loading import load
from emu_embodied.policies.costs import RewardHead
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.storage.files import load_folder
from emu_embodied.types import Observation

TRAIN = ["preset=emu3.5", "recipe.adoption.encoded_size=64", "recipe.adoption.text_length=96", "threads=1"]
TRAIN += ["recipe.held_out=2", "recipe.trajectory.batch=2", "recipe.trajectory_loop.evaluate_every=1000"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder with tiny random models in the official format."""
    return write_released(tmp_path_factory.mktemp("emu35"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "frames"
    save_frame_cache(path, frames())
    return path


@pytest.fixture(scope="module", params=[4, 0], ids=["adapters", "whole"])
def run(request, released, data, tmp_path_factory):
    """The run folder of a short fine-tuning by the command."""
    out = tmp_path_factory.mktemp("run")
    words = [f"from={released}", f"frames={data}", f"out={out}", f"recipe.lora.rank={request.param}"]
    assert main(["train", *TRAIN, *words, "recipe.trajectory_loop.steps=10"]) == 0
    return out


def observation(seed: int) -> Observation:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    return Observation(pixels, np.zeros(2, np.float32), "push the red cube to the left")


def test_adopted_and_not_trained_it_says_what_the_released_model_says(released):
    models = load_released(released, dtype=torch.float32)
    tokenizer, text, model = adopt(models, WORLD, 2, ADOPTION)
    codes = tokenizer.encode(torch.from_numpy(np.stack([observation(i).pixels for i in range(3)])))
    v, prompt = model.config.vocabulary, text.batch(["push"], 96, model.config.vocabulary.pad)
    header, block = v.image_header(4, 4), v.image_block(4, 4)
    written = prompt[0].tolist()
    for t in range(3):
        visual = iter((codes[t] + v.visual_offset).tolist())
        bins = [v.no_action] * 2 if t == 0 else [v.action_offset + 63, v.action_offset]
        written += [*bins, *header, *(next(visual) if i is None else i for i in block)]
    states = model(prompt, codes[None], torch.tensor([[[1.0, -1.0]] * 2]))
    last = states.clean_BFTD[0, -1]
    logits = models.model(torch.tensor([written]))[0, -len(last) :]
    torch.testing.assert_close(model.transformer.lm_head(last), logits, atol=1e-4, rtol=1e-4)


def test_a_fine_tuned_model_is_dreamt_in_like_any_other(run):
    world = load(run / "checkpoint")
    history = world.encode([observation(0), observation(1)])
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 2)).astype(np.float32)
    rollout = world.rollout(history, actions)
    assert rollout.codes_BSTN.shape == (2, 3, 4, 16) and rollout.positions_BSTOD.shape == (2, 3, 4, 5, 2)
    assert world.decode(rollout.codes_BSTN).shape == (2, 3, 4, 64, 64, 3)
    greedy = load(run / "checkpoint", decoding="exact").rollout(history, actions).codes_BSTN
    one_by_one = load(run / "checkpoint", decoding="autoregressive").rollout(history, actions).codes_BSTN
    assert greedy.equal(one_by_one)
    plan = CEM(CEMConfig(candidates=4, horizon=3, iterations=2, elites=2)).plan(
        world, history.select([0]), RewardHead()
    )
    assert plan.actions.shape == (3, 2) and np.isfinite(plan.cost)
    env = gymnasium.make("emu_embodied.envs:emu_embodied/Imagined-v0", checkpoint=str(run / "checkpoint"))
    seen, _ = env.reset(seed=0)
    seen, *_ = env.step(env.action_space.sample())
    assert seen["pixels"].shape == (64, 64, 3)
    env.close()
    vector = gymnasium.make_vec("emu_embodied/Imagined-v0", num_envs=2, world_model=world)
    vector.reset(seed=0)
    assert vector.step(vector.action_space.sample())[0]["pixels"].shape == (2, 64, 64, 3)
    vector.close()


def test_it_is_evaluated_by_the_same_command(run, tmp_path):
    words = [f"checkpoint={run / 'checkpoint'}", f"out={tmp_path}", "episodes=2", "steps=14", "planning=0", "worst=0"]
    assert main(["evaluate", *words]) == 0
    assert json.loads((tmp_path / "result.json").read_text())
    assert main(["evaluate", *words, "steps=9"]) != 0


@pytest.mark.parametrize("passes", [[], ["passes=2"]], ids=["released", "adapted"])
def test_images_are_generated_by_what_was_released_and_by_what_was_adapted(passes, released, run, tmp_path):
    checkpoint = run / "checkpoint" if passes else released
    words = [f"checkpoint={checkpoint}", "task=t2i", "prompt=cubes", "height=32", "width=48", f"out={tmp_path}"]
    assert main(["generate", *words, *passes, "device=cpu"]) == 0
    (part,) = json.loads((tmp_path / "result.json").read_text())["parts"]
    assert part["grid"] == [2, 3] and cv2.imread(str(tmp_path / part["file"])).shape == (32, 48, 3)


def test_a_released_model_alone_draws_token_by_token(released, tmp_path, capsys):
    words = [f"checkpoint={released}", "task=t2i", "prompt=cubes", "height=32", "width=48", f"out={tmp_path / 'x'}"]
    assert main(["generate", *words, "passes=2"]) != 0
    assert "token by token only" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["int8"])
def test_adapters_over_rounded_matrices(kind, released, data, tmp_path, capsys):
    pytest.importorskip("torchao")
    words = ["train", *TRAIN, f"from={released}", f"frames={data}", f"out={tmp_path}", f"quantisation={kind}"]
    assert main([*words, "recipe.lora.rank=2", "recipe.trajectory_loop.steps=3"]) == 0
    world = load(tmp_path / "checkpoint")
    history = world.encode([observation(0)])
    assert world.rollout(history, np.zeros((1, 2, 2, 2), np.float32)).codes_BSTN.shape == (1, 2, 2, 16)
    assert main([*words, "recipe.lora.rank=0", f"out={tmp_path / 'whole'}"]) != 0
    assert "quantisation: int8" in capsys.readouterr().err


def test_adapters_are_all_that_is_kept_of_a_language_model(run):
    tensors, documents = load_folder(run / "checkpoint")
    whole = documents["config"]["lora"]["rank"] == 0
    assert any("layers.0.self_attn.q_proj.weight" in name for name in tensors["trained"]) == whole
    assert any("lora_A" in name for name in tensors["trained"]) != whole


def test_a_stopped_fine_tuning_goes_on_to_the_same_weights(released, data, tmp_path):
    words = ["train", *TRAIN, f"from={released}", f"frames={data}", "recipe.trajectory_loop.save_every=2"]
    words += ["recipe.trajectory_loop.steps=4", "recipe.trajectory_loop.log_every=2"]
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    from emu_embodied.commands._config import compose_config
    from emu_embodied.commands.train import make_fine_tuning
    from emu_embodied.data.frame_cache import load_frame_cache
    from emu_embodied.training.folder import TrainingRun
    from emu_embodied.training.stages.emu35 import fine_tune

    def stop(line: str) -> None:
        if line.startswith("trajectory 2/"):
            raise KeyboardInterrupt

    job = (
        load_frame_cache(data),
        make_fine_tuning(compose_config("train", [w for w in words[1:] if w[:5] != "from="])),
    )
    job += (Base.of(released), WORLD)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(*job, TrainingRun(tmp_path / "pieces", report=stop))
    fine_tune(*job, quiet(tmp_path / "pieces"))
    pieces, whole = (load_folder(tmp_path / name / "checkpoint")[0]["trained"] for name in ("pieces", "whole"))
    assert pieces.keys() == whole.keys() and all(pieces[name].equal(whole[name]) for name in whole)


def test_any_lerobot_dataset_fine_tunes_it(released, tmp_path):
    data = write_foreign(tmp_path / "arm", "image", cameras=(TOP, WRIST))
    words = [f"from={released}", f"data={data}", "camera=wrist", f"out={tmp_path / 'run'}", "recipe.held_out=1"]
    assert main(["train", *TRAIN, *words, "recipe.lora.rank=2", "recipe.trajectory_loop.steps=3"]) == 0
    world = load(tmp_path / "run" / "checkpoint")
    assert world.objects == () and world.action_dim == len(JOINTS)
    rollout = world.rollout(world.encode([observation(0)]), np.zeros((1, 2, 2, len(JOINTS)), np.float32))
    assert rollout.codes_BSTN.shape == (1, 2, 2, 16)


def test_a_base_that_is_gone_or_another_is_refused(released, data, tmp_path):
    import shutil

    moved = tmp_path / "released"
    shutil.copytree(released, moved)
    words = [f"from={moved}", f"frames={data}", f"out={tmp_path / 'run'}", "recipe.trajectory_loop.steps=0"]
    assert main(["train", *TRAIN, *words]) == 0
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"note": "another"}))
    with pytest.raises(CheckpointError, match="fingerprint"):
        load(tmp_path / "run" / "checkpoint")
    shutil.rmtree(moved)
    with pytest.raises(CheckpointError, match="released"):
        load(tmp_path / "run" / "checkpoint")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("base",), 5, "base: 5"),
        (("base", "model"), None, "base.model"),
        (("base", "model"), "/dev", "/dev"),
        (("base", "text"), "pipes", "emu3.tiktoken"),
        (("base", "quantisation"), "os:system", "base.quantisation: os:system"),
        (("adoption", "context_frames"), 10**9, "adoption.context_frames"),
        (("adoption", "text_length"), "96", "adoption.text_length: 96; must be a whole number"),
        (("adoption", "encoded_size"), 48, "grid|encoded_size"),
        (("adoption", "noise"), "metric", "adoption.noise"),
        (("lora", "rank"), -1, "lora.rank"),
        (("lora", "targets"), ["lm_head"], "lora.targets"),
        (("action_dim",), 0, "action_dim: 0"),
        (("action_dim",), 3, "action_value"),
        (("world", "env_id"), "gift:Zork-v0", "world.env_id"),
        (("training",), [], "training"),
    ],
)
def test_a_checkpoint_of_right_sums_and_other_content_is_refused(run, tmp_path, path, value, named, monkeypatch):
    import os
    import shutil

    from hostile import edit_json, put

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "emu3.tiktoken")
    shutil.copytree(run / "checkpoint", tmp_path / "copy")
    edit_json(tmp_path / "copy", "config.json", lambda document: put(document, path, value))
    with pytest.raises(CheckpointError, match=named):
        load_adapted(tmp_path / "copy")


def test_merged_adapters_compute_what_they_did(released):
    model = load_released(released, dtype=torch.float32).model
    names, ids = set(model.state_dict()), torch.arange(9)[None]
    before = model(ids)
    add_adapters(model, LoRAConfig(rank=2))
    assert model(ids).equal(before)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = model(ids)
    merge_adapters(model)
    assert not adapted.allclose(before, atol=1e-3) and set(model.state_dict()) == names
    torch.testing.assert_close(model(ids), adapted, atol=1e-4, rtol=1e-4)


def test_instructions_are_text_whatever_they_say(released):
    models = load_released(released, dtype=torch.float32)
    _, text, model = adopt(models, WORLD, 2, ADOPTION)
    pad, v = model.config.vocabulary.pad, model.config.vocabulary
    rows = text.batch(["a<|extra_204|>", ""], 96, pad)
    assert v.end not in rows[0] and rows[0, -1] == v.span_start and (rows[1] == pad).all()
    with pytest.raises(InputError, match="instruction"):
        text.batch(["far too long " * 20], 96, pad)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["preset=emu3.5"], "from"),
        (["preset=emu3.5", "from=x", "stage=dida"], "stage"),
        (["preset=emu3.5", "from=x", "recipe.lora.rank=-1"], "lora.rank"),
        (["preset=emu3.5", "from=x", "recipe.adoption.noise=metric"], "noise"),
        (["preset=emu3.5", "from=x", "recipe.trajectory.soften=0.5"], "soften"),
        (["preset=nano", "from=x"], "checkpoint: x"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_read(words, field, capsys):
    assert main(["train", *words]) != 0
    assert field in capsys.readouterr().err


@pytest.mark.parametrize("size", [40, 48])
def test_a_frame_size_that_the_tokenizer_cannot_take(released, size):
    with pytest.raises(ConfigError, match="encoded_size"):
        adopt(load_released(released, dtype=torch.float32), WORLD, 2, AdoptionConfig(encoded_size=size))


def test_a_checkpoint_says_where_its_base_is(run, released):
    *_, config = load_adapted(run / "checkpoint")
    assert config["base"]["model"] == str(released) and len(config["base"]["fingerprint"]) == 16
    with pytest.raises(CheckpointError, match="stands on a released model"):
        load_checkpoint(run / "checkpoint")
