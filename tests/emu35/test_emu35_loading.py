"""Released language models: the official logits, memory for one copy of the weights, and one clear error for every damage."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_emu35 import DATA, REFERENCE, fill, needs_reference
from tiny_emu35_lm import TINY, tiny_language_model, write_language_model, write_released

from emu_embodied.commands import main
from emu_embodied.emu35.config import read_config
from emu_embodied.emu35.language_model import load_language_model, meta_model
from emu_embodied.emu35.memory_estimate import RELEASED, parameters
from emu_embodied.errors import CheckpointError, EngineError
from emu_embodied.model.transformer import Transformer

IDS = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))
INDEX = "model.safetensors.index.json"


@needs_reference("tiny/lm")
def test_logits_are_the_official_ones_whole_and_over_a_cache():
    model = load_language_model(REFERENCE / "tiny/lm", dtype=torch.float32)
    expected = load_file(REFERENCE / "tiny/lm_expected.safetensors")
    ids = expected["input_ids"]
    torch.testing.assert_close(model(ids), expected["logits"], atol=1e-4, rtol=0)
    cache = model.new_cache(len(ids), ids.shape[1])
    parts = [model(part, cache) for part in ids.split([20, 1, 9, 7], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected["logits"], atol=1e-4, rtol=0)


def test_logits_are_those_that_travel_with_the_tests(tmp_path):
    expected = load_file(DATA / "lm.safetensors")
    folder = write_language_model(tmp_path, fill(Transformer(TINY)), shards=2)
    logits = load_language_model(folder, dtype=torch.float32)(expected["input_ids"])
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)
    assert expected["logits"].std() > 0.3


@pytest.mark.parametrize("shards", [1, 3])
def test_what_was_written_is_what_computes(tmp_path, shards):
    model = tiny_language_model()
    loaded = load_language_model(write_language_model(tmp_path / "lm", model, shards), dtype=torch.float32)
    assert loaded(IDS).equal(model(IDS)) and not any(p.requires_grad for p in loaded.parameters())
    half = load_language_model(tmp_path / "lm")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    near = torch.cosine_similarity(half(IDS).float(), model(IDS), dim=-1)
    assert near.min() > 0.99


def test_the_published_sizes_are_34_billion_weights():
    assert parameters(RELEASED) == sum(p.numel() for p in meta_model(RELEASED).parameters()) == 34_103_460_864
    assert parameters(TINY) == sum(p.numel() for p in tiny_language_model().parameters())


PEAK = """
import sys, torch
from emu_embodied.emu35.language_model import load_language_model
def peak(): return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
load_language_model(sys.argv[3])  # what is imported on the way is not the weights'
open("/proc/self/clear_refs", "w").write("5")
before = peak()
model = load_language_model(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_needs_the_weights_once(tmp_path, dtype):
    config = replace(TINY, vocab_size=1024, hidden_size=512, intermediate_size=2560, num_hidden_layers=24, head_dim=64)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in meta_model(config).state_dict().items()}
    folder, small = (write_language_model(tmp_path / name, tiny_language_model()) for name in ("lm", "small"))
    whole = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(whole, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    changed = {name: getattr(config, name) for name in values if hasattr(config, name) and name != "rope_scaling"}
    (folder / "config.json").write_text(json.dumps(values | changed))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), dtype, str(small)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.1, done.stdout


@pytest.mark.parametrize(("kind", "least"), [("int8", 0.999), ("int4", 0.85), ("nf4", 0.85)])
def test_rounded_weights_say_nearly_the_same(tmp_path, kind, least):
    pytest.importorskip("torchao")
    sizes = replace(
        TINY, hidden_size=128, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=32
    )
    model = tiny_language_model(sizes)
    rounded = load_language_model(write_language_model(tmp_path, model), dtype=torch.float32, quantisation=kind)
    near = torch.cosine_similarity(rounded(IDS), model(IDS), dim=-1)
    assert near.min() > least and not rounded(IDS).equal(model(IDS))
    assert rounded.lm_head.weight.equal(model.lm_head.weight)
    layer = rounded.model.layers[0]
    assert (
        type(layer.mlp.up_proj.weight.data) is not torch.Tensor and layer.input_layernorm.weight.dtype == torch.float32
    )


def test_a_rounding_that_does_not_exist_or_fit_is_refused(tmp_path, monkeypatch):
    folder = write_language_model(tmp_path, tiny_language_model())
    with pytest.raises(EngineError, match="quantisation: int3"):
        load_language_model(folder, quantisation="int3")
    pytest.importorskip("torchao")
    with pytest.raises(EngineError, match="multiples of 16384"):
        load_language_model(folder, quantisation="nf4")
    with pytest.raises(EngineError, match="one of .128, 64, 32. divides"):
        load_language_model(folder, quantisation="int4")  # the SwiGLU is 48 wide
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(EngineError, match=r"emu-embodied\[quantisation\]"):
        load_language_model(tmp_path / "nowhere", quantisation="int8")  # before anything is read


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("model_type", "llama", "model_type"),
        ("hidden_act", "gelu", "hidden_act"),
        ("tie_word_embeddings", True, "tie_word_embeddings"),
        ("attention_bias", True, "attention_bias"),
        ("rope_parameters", {"rope_type": "yarn"}, "rope_parameters"),
        ("rope_scaling", {"type": "yarn", "factor": 2.0}, "rope_scaling"),
        ("rope_scaling", {"type": "linear", "factor": 0}, "rope_scaling"),
        ("hidden_size", 0, "hidden_size"),
        ("hidden_size", "32", "hidden_size"),
        ("num_key_value_heads", 3, "num_key_value_heads"),
        ("head_dim", 15, "head_dim"),
        ("rms_norm_eps", -1.0, "rms_norm_eps"),
    ],
)
def test_a_configuration_that_would_compute_something_else_is_refused(tmp_path, key, value, field):
    folder = write_language_model(tmp_path, tiny_language_model(), **{key: value})
    with pytest.raises(CheckpointError, match=f"config.json: {field}"):
        load_language_model(folder)


def test_unknown_keys_are_passed_over(tmp_path):
    folder = write_language_model(tmp_path, tiny_language_model(), boi_token_id=4, something="new")
    assert read_config(folder) == TINY


def test_the_older_emu3_is_called_by_its_name(tmp_path):
    folder = write_language_model(tmp_path, tiny_language_model())
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "_norm.weight" not in name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="older Emu3"):
        load_language_model(folder)
    values = json.loads((folder / "config.json").read_text())
    del values["head_dim"]
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": 184622}))
    with pytest.raises(CheckpointError, match="older Emu3"):
        load_language_model(folder)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "layers.1.mlp.up_proj.weight: missing; expected .*48, 32",
        ),
        (lambda t: t.update(extra=torch.ones(2)), "model.safetensors: extra: unexpected"),
        (lambda t: t.update({"lm_head.weight": torch.ones(2, 32)}), "lm_head.weight: shape .2, 32.; expected .64, 32"),
        (lambda t: t.update({"lm_head.weight": torch.ones(64, 32).int()}), "lm_head.weight: I32; expected one of"),
        (lambda t: t["lm_head.weight"].fill_(float("nan")), "lm_head.weight: NaN"),
    ],
)
def test_a_tensor_that_is_not_as_expected_is_named(tmp_path, change, message):
    folder = write_language_model(tmp_path, tiny_language_model())
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_language_model(folder)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))


def zipped(folder):
    torch.save({"a": torch.ones(1)}, folder / "model.safetensors")


def header(change):
    """Damages a file's header, whose first tensor is the head, by a change to its text of the same or another length."""

    def damage(folder):
        file = folder / "model.safetensors"
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        text = change(data[8:end].rstrip())
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return damage


def twice(text):
    return b'{"lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' + text[1:]


def overlapping(text):
    values = json.loads(text)
    values["model.norm.weight"]["data_offsets"] = values["lm_head.weight"]["data_offsets"]
    return json.dumps(values).encode()


def many(text):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"e{i}": entry for i in range(20_000)}).encode()


def piped(name):
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


def setting(key, value):
    def damage(folder):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {key: value}))

    return damage


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "model.safetensors: .*cut off"),
        (pickled, "a pickle or zip"),
        (zipped, "a pickle or zip"),
        (header(twice), "a key stands twice"),
        (header(overlapping), "begins at"),
        (header(lambda text: b"[]"), "a damaged header"),
        (header(lambda text: text.replace(b"[64,32]", b"[64,-3]")), "begins at|bytes"),
        (header(lambda text: text.replace(b"[64,32]", b'"ab"')), "a damaged header|begins at"),
        (lambda folder: (folder / "model.safetensors").open("ab").write(b"more"), "bytes of data"),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"), "git lfs pull"),
        (only_a_pickle, "only pytorch_model.bin, which is a pickle"),
        (lambda folder: (folder / "model.safetensors").unlink(), "nothing; expected safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "expected safetensors"),
        (header(lambda text: b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"), "too many"),
        (header(many), "20000 tensors"),
        (piped("model.safetensors"), "nothing; expected safetensors"),
        (piped("config.json"), "config.json"),
        (setting("num_hidden_layers", 10**6), "config.json: num_hidden_layers: 1000000"),
        (setting("num_key_value_heads", 0), "config.json: num_key_value_heads"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
    ],
)
def test_a_damaged_folder_is_one_error_and_nothing_is_executed(tmp_path, damage, message):
    folder = write_language_model(tmp_path, tiny_language_model())
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_language_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, index: (folder / "model-00002-of-00002.safetensors").unlink(), "00002.safetensors: missing"),
        (lambda folder, index: index["weight_map"].update({"lm_head.weight": "../x.safetensors"}), "in the folder"),
        (lambda folder, index: index["weight_map"].update({"lm_head.weight": "model.bin"}), "a .safetensors file"),
        (lambda folder, index: index.update(weight_map=[]), "weight_map"),
        (
            lambda folder, index: index["weight_map"].update(nothing="model-00001-of-00002.safetensors"),
            "nothing: missing",
        ),
        (lambda folder, index: index["weight_map"].pop("model.layers.1.mlp.up_proj.weight"), None),
        (
            lambda folder, index: (
                save_file({"lm_head.weight": torch.ones(2)}, folder / "more.safetensors")
                or index["weight_map"].update({"lm_head.weight": "more.safetensors"})
            ),
            "also in",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, change, message):
    folder = write_language_model(tmp_path, tiny_language_model(), shards=2)
    index = json.loads((folder / INDEX).read_text())
    change(folder, index)
    (folder / INDEX).write_text(json.dumps(index))
    if message is None:  # the shards themselves say what they hold
        assert load_language_model(folder, dtype=torch.float32)(IDS).equal(tiny_language_model()(IDS))
        return
    with pytest.raises(CheckpointError, match=message):
        load_language_model(folder)


def test_the_doctor_says_what_fits_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    folder = write_released(tmp_path / "emu35")
    assert main(["doctor", f"checkpoint={folder}", "tokens=100"]) == 0
    shown = capsys.readouterr().out
    assert "fits" in shown and "nf4" in shown and "rank 16" in shown
    assert main(["doctor", "checkpoint=nano-tabletop"]) == 0
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert main(["doctor", f"checkpoint={folder}"]) != 0
    assert "00001-of-00002.safetensors: missing" in capsys.readouterr().err
    assert main(["doctor", f"checkpoint={folder}", "tokens=0"]) != 0


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_longer_sequences_are_read_as_the_configuration_says(kind):
    plain = tiny_language_model(replace(TINY, max_position_embeddings=8))
    scaled = tiny_language_model(replace(plain.config, rope_scaling=kind, rope_factor=2.0))
    scaled.load_state_dict(plain.state_dict())
    if kind == "dynamic":
        assert scaled(IDS[:, :8]).equal(plain(IDS[:, :8]))
        theta = TINY.rope_theta * (2 * 11 / 8 - 1) ** (16 / 14)
        other = tiny_language_model(replace(plain.config, rope_theta=theta))
        torch.testing.assert_close(scaled(IDS), other(IDS))
    else:
        x, mask = plain.model.embed_tokens(IDS), torch.ones(11, 11, dtype=torch.bool).tril()
        halved = plain.lm_head(plain.hidden(x, torch.arange(11) / 2, mask))
        torch.testing.assert_close(scaled(IDS), halved)
