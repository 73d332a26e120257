"""Emu3.5's vision tokenizer: the official codes and pixels, damaged files refused, and frames of a world model."""

import os
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_emu35 import DATA, REFERENCE, TINY_IBQ, needs_reference, tiny_ibq, tiny_image, write_ibq

from emu_embodied.emu35.vision import load_vision_tokenizer
from emu_embodied.errors import CheckpointError, ConfigError, InputError
from emu_embodied.tokenizers import ibq as ibq_module
from emu_embodied.tokenizers.frames import to_float
from emu_embodied.tokenizers.ibq import IBQ, IBQConfig, fitting_size, preprocess, resize
from emu_embodied.tokenizers.ibq_frames import IBQFrames, IBQFramesConfig


@needs_reference("tiny/vq")
def test_codes_and_pixels_are_those_of_the_official_code():
    model = load_vision_tokenizer(REFERENCE / "tiny" / "vq")
    expected = load_file(REFERENCE / "tiny" / "vq_expected.safetensors")
    assert torch.equal(model.encode(expected["image"]), expected["codes"])
    torch.testing.assert_close(model.decode(expected["codes"]), expected["decoded"], atol=1e-4, rtol=0)


def test_codes_and_pixels_stay_what_they_were():
    """Computed when the test above passed, for machines without the reference data."""
    model, expected = tiny_ibq(), load_file(DATA / "ibq.safetensors")
    assert torch.equal(tiny_image(), expected["image"])
    assert torch.equal(model.encode(to_float(expected["image"])), expected["codes"])
    torch.testing.assert_close(model.decode(expected["codes"]), expected["decoded"], atol=1e-4, rtol=0)


def test_the_released_sizes_have_the_released_number_of_weights():
    with torch.device("meta"):
        model = IBQ(IBQConfig())
    assert sum(p.numel() for p in model.parameters()) == 455_336_963 and model.config.factor == 16
    assert len(model.encoder.down[4].attn) == 4 and len(model.decoder.up[4].attn) == 5
    assert not any(len(level.attn) for level in [*model.encoder.down[:4], *model.decoder.up[:4]])


def test_blocks_of_latents_and_codes_change_nothing(monkeypatch):
    torch.manual_seed(0)
    book = ibq_module.Codebook(37, 8)
    book.embedding.weight.data[36] = book.embedding.weight.data[3]  # of equal ones the first
    z = torch.randn(2, 8, 3, 5)
    expected = torch.einsum("bdhw,vd->bhwv", z, book.embedding.weight[:36]).argmax(-1)
    monkeypatch.setattr(ibq_module, "LATENTS", 7)
    monkeypatch.setattr(ibq_module, "CODES", 10)
    assert torch.equal(book.nearest(z), expected)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.zeros(1, 3, 24, 32), "24 x 32"),
        (torch.zeros(1, 3, 0, 32), "0 x 32"),
        (torch.zeros(1, 3, 8, 8), "8 x 8"),
        (torch.zeros(3, 32, 32), "floating point"),
        (torch.zeros(1, 4, 32, 32), "floating point"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 32, 32), torch.nan), "finite"),
        (torch.full((1, 3, 32, 32), torch.inf), "finite"),
        (torch.full((1, 3, 32, 32), 255.0), "127.5"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, found):
    with pytest.raises(InputError, match=found):
        tiny_ibq().encode(images)


@pytest.mark.parametrize(
    "codes", [torch.zeros(4, 4).long(), torch.zeros(1, 2, 2), torch.full((1, 2, 2), 64), torch.full((1, 2, 2), -1)]
)
def test_codes_that_do_not_exist_are_refused(codes):
    with pytest.raises(InputError, match="codes"):
        tiny_ibq().decode(codes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ch", 48), ("ch", 0), ("ch_mult", ()), ("ch_mult", (1,) * 9), ("n_embed", True), ("resolution", 2.0)],
)
def test_sizes_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        replace(TINY_IBQ, **{name: value})


@pytest.mark.parametrize(
    ("height", "width", "area", "size"),
    [
        (480, 640, 512 * 512, (448, 592)),
        (16, 16, 256, (16, 16)),
        (16, 4000, 4096, (16, 1008)),
        (100, 50, 6000, (112, 48)),
    ],
)
def test_images_keep_their_proportions_and_look_like_pillows(height, width, area, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert fitting_size(height, width, area, 16) == size
    prepared = preprocess(image, area)
    assert prepared.shape == (1, 3, *size) and prepared.dtype == torch.float32 and prepared.abs().max() <= 1
    pillow = pytest.importorskip("PIL.Image")
    expected = np.asarray(pillow.fromarray(image).resize(size[::-1], pillow.Resampling.BICUBIC))
    found = resize(torch.from_numpy(image)[None], size)[0]
    assert (found.int() - torch.from_numpy(expected.copy()).int()).abs().max() <= 1
    assert torch.equal(prepared, to_float(found[None]))


@pytest.mark.parametrize(
    ("image", "area", "found"),
    [
        (np.zeros((15, 64, 3), np.uint8), 4096, "15 x 64"),
        (np.zeros((64, 64, 3), np.float32), 4096, "float32"),
        (np.zeros((64, 64), np.uint8), 4096, "RGB"),
        (np.zeros((64, 64, 4), np.uint8), 4096, "RGB"),
        (np.zeros((64, 64, 3), np.uint8), 255, "image_area"),
        (np.zeros((64, 64, 3), np.uint8), 4096.0, "image_area"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(image, area, found):
    with pytest.raises(InputError, match=found):
        preprocess(image, area)


# frames of a world model


def test_frames_come_and_go_at_the_environments_size():
    config = IBQFramesConfig(image_size=40, encoded_size=64, ibq=TINY_IBQ)
    assert (config.grid, config.tokens_per_frame, config.codebook_size) == (4, 16, 64)
    frames = tiny_image(40, 40).repeat(10, 1, 1, 1)
    tokenizer = IBQFrames(config, tiny_ibq())
    codes = tokenizer.encode(frames)
    assert codes.shape == (10, 16) and codes.dtype == torch.int64 and (codes == codes[0]).all()
    assert torch.equal(codes[:1].view(1, 4, 4), tokenizer.ibq.encode(to_float(resize(frames[:1], (64, 64)))))
    decoded = tokenizer.decode(codes)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    assert torch.equal(tokenizer.places(), tokenizer.ibq.quantize.embedding.weight)


def test_frames_have_the_tokenizers_state():
    config = IBQFramesConfig(32, 32, TINY_IBQ)
    tokenizer, model = IBQFrames(config), tiny_ibq()
    assert tokenizer.state_dict().keys() == model.state_dict().keys()
    tokenizer.load_state_dict(model.state_dict())
    frames = tiny_image(32, 32)
    assert torch.equal(tokenizer.encode(frames), IBQFrames(config, model).encode(frames))


def test_frames_that_do_not_fit_are_refused():
    tokenizer = IBQFrames(IBQFramesConfig(32, 32, TINY_IBQ), tiny_ibq())
    for frames in (torch.zeros(1, 32, 48, 3).byte(), torch.zeros(1, 32, 32, 3), torch.zeros(32, 32, 3).byte()):
        with pytest.raises(InputError, match="frames"):
            tokenizer.encode(frames)
    for codes in (torch.zeros(1, 5).long(), torch.full((1, 4), 64), torch.zeros(4).long()):
        with pytest.raises(InputError, match="codes"):
            tokenizer.decode(codes)
    for sizes in ({"encoded_size": 40}, {"encoded_size": 0}, {"image_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(sizes))):
            IBQFramesConfig(**sizes, ibq=TINY_IBQ)
    with pytest.raises(ConfigError, match="ibq"):
        IBQFrames(IBQFramesConfig(32, 32, TINY_IBQ), IBQ(replace(TINY_IBQ, n_embed=65)))


# the released folder


@pytest.fixture
def folder(tmp_path):
    return write_ibq(tmp_path / "vq", tiny_ibq())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_folder_comes_back(folder, wrapped):
    model = tiny_ibq()
    if wrapped:
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "model.ckpt")
    loaded = load_vision_tokenizer(folder)
    assert loaded.config == TINY_IBQ and not loaded.training
    assert all(
        torch.equal(p, q) and not p.requires_grad for p, q in zip(loaded.parameters(), model.parameters(), strict=True)
    )
    assert {p.dtype for p in load_vision_tokenizer(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_safetensors_come_first(folder):
    save_file(tiny_ibq().state_dict(), folder / "model.safetensors")
    (folder / "model.ckpt").write_bytes(b"not looked at")
    assert torch.equal(
        load_vision_tokenizer(folder).encode(to_float(tiny_image())), tiny_ibq().encode(to_float(tiny_image()))
    )


def test_half_precision_works(folder):
    model = load_vision_tokenizer(folder, torch.bfloat16)
    codes = model.encode(to_float(tiny_image()))
    assert codes.shape == (1, 4, 6) and model.decode(codes).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"double_z": True}, "double_z: True; only False"),
        ({"attn_type": "linear"}, "attn_type"),
        ({"resamp_with_conv": False}, "resamp_with_conv"),
        ({"ch": 48}, "ch: 48; choose a multiple of 32"),
        ({"ch": "32"}, "ch: '32'; must be a whole"),
        ({"ch_mult": 4}, "ch_mult: 4; must be a list"),
        ({"ch_mult": [1, [1]]}, "ch_mult: a list; must be a list of whole numbers"),
        ({"num_res_blocks": 10**9}, "num_res_blocks"),
        ({"z_channels": 32}, r"conv_out.weight: \(16, 64, 3, 3\); expected shape \(32, 64, 3, 3\)"),
        ({"num_res_blocks": 2}, "lacks encoder.down.0.block.1"),
        ({"attn_resolutions": []}, "encoder.down.4.attn.0.norm.weight: unexpected key"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder, change, found):
    write_ibq(folder, tiny_ibq(), **change)
    with pytest.raises(CheckpointError, match=found):
        load_vision_tokenizer(folder)


# Aliases of aliases: a list of 9^30 numbers, if anything wrote it out.
BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 31))
BOMB += "ddconfig: {ch: 32, ch_mult: *a30}\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[1, 2]", "the top level: a list"),
        ("n_embed: 64", "ddconfig: None"),
        ("ddconfig: {}\nn_embed: 64\nembed_dim: 16", "ch: missing"),
        ("!!python/object/apply:os.system ['touch HACKED']", "plain YAML"),
        ("a: [", "plain YAML"),
        ("[" * 5000, "plain YAML"),
        ("\x00", "plain YAML"),
        ("x" * (2 << 20), "bytes"),
        ("ddconfig: {ch: &a [*a]}\n", "ch: a list"),
        (BOMB, "ch_mult: a list"),
    ],
)
def test_other_yaml_is_refused(folder, text, found, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=found):
        load_vision_tokenizer(folder)
    assert not (folder / "HACKED").exists()


@pytest.mark.parametrize("name", ["config.yaml", "model.ckpt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_vision_tokenizer(folder)
    with pytest.raises(CheckpointError, match="config.yaml"):
        load_vision_tokenizer(folder / "nowhere")


@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_keys_shapes_and_values_are_checked(folder):
    good = tiny_ibq().state_dict()
    key = "quantize.embedding.weight"
    for change, found in [
        ({key: torch.zeros(63, 16)}, rf"model.ckpt: {key}: \(63, 16\); expected shape \(64, 16\)"),
        ({"loss.weight": torch.zeros(1)}, "model.ckpt: loss.weight: unexpected key"),
        ({key: torch.full((64, 16), torch.nan)}, f"{key}: NaN"),
        ({key: torch.zeros(64, 16).long()}, f"{key}: torch.int64"),
        ({key: torch.zeros(64, 16).to_sparse()}, f"{key}: torch.float32, torch.sparse"),
        ({key: 3}, f"{key}: int"),
        ({7: torch.zeros(1)}, "a state dict"),
    ]:
        torch.save({**good, **change}, folder / "model.ckpt")
        with pytest.raises(CheckpointError, match=found):
            load_vision_tokenizer(folder)
    torch.save({k: v for k, v in good.items() if k != key}, folder / "model.ckpt")
    with pytest.raises(CheckpointError, match=f"lacks {key}"):
        load_vision_tokenizer(folder)
    torch.save([1, 2], folder / "model.ckpt")
    with pytest.raises(CheckpointError, match="a list"):
        load_vision_tokenizer(folder)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("HACKED",)


def test_nothing_in_a_pickle_is_run(folder, monkeypatch):
    import pickle

    monkeypatch.chdir(folder)
    for save in (
        lambda path: torch.save({"state_dict": Hostile()}, path),
        lambda path: torch.save(
            {**tiny_ibq().state_dict(), "x": Hostile()}, path, _use_new_zipfile_serialization=False
        ),
        lambda path: path.write_bytes(pickle.dumps(Hostile())),
    ):
        for name in ("model.ckpt", "model.safetensors"):
            save(folder / name)
            with pytest.raises(CheckpointError, match=name) as caught:
                load_vision_tokenizer(folder)
            assert "\n" not in str(caught.value)
            if name == "model.safetensors":
                (folder / name).unlink()
    assert not (folder / "HACKED").exists()


def test_an_archive_under_the_name_of_safetensors_is_refused(folder):
    (folder / "model.ckpt").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_vision_tokenizer(folder)


def test_duplicate_keys_are_refused(folder):
    entry = '"quant_conv.bias": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}'
    header = f"{{{entry}, {entry}}}".encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(CheckpointError, match="duplicate keys"):
        load_vision_tokenizer(folder)


def test_headers_that_would_fill_memory_and_pipes_that_wait_are_refused(folder):
    header = b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_vision_tokenizer(folder)
    for name in ("model.safetensors", "config.yaml", "model.ckpt"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="config.yaml"):
        load_vision_tokenizer(folder)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.5, 0.999999])
def test_truncated_files_are_refused(folder, name, share):
    save_file(tiny_ibq().state_dict(), folder / "model.safetensors")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    if name == "model.ckpt":
        (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=name):
        load_vision_tokenizer(folder)


def test_flipped_bits_are_found(folder):
    data = bytearray((folder / "model.ckpt").read_bytes())
    for position in np.random.default_rng(0).integers(len(data) // 10, len(data) * 8 // 10, 5):
        data[position] ^= 4
        (folder / "model.ckpt").write_bytes(data)
        data[position] ^= 4
        try:
            loaded = load_vision_tokenizer(folder)
        except CheckpointError as error:
            assert "model.ckpt" in str(error)
        else:  # a byte between two entries means nothing
            state = tiny_ibq().state_dict()
            assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
