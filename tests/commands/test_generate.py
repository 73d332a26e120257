"""From a prompt to PNG and JSON on a tiny random model, results put together, parts that do not fit, and errors."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_generation import ByteText, TinyVision, tiny_emu35

from emu_embodied.commands import main
from emu_embodied.emu35 import loading
from emu_embodied.emu35.results import Collector, ImagePart, TextPart, image_pixels
from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.generation.interleaved import Ended, ImageBegun, ImageFinished, TextPiece

V = ByteText.vocabulary
WORDS = ["generate", "checkpoint=folder", "vision=folder"]


@pytest.fixture
def loaded(monkeypatch) -> list:
    """Lets the command load the tiny model; the list has the arguments of each load."""
    calls = []

    def load(*arguments, **options):
        calls.append((arguments, options))
        return tiny_emu35()

    monkeypatch.setattr(loading, "load", load)
    return calls


def picture(path, height=32, width=48) -> str:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    return str(path)


@pytest.mark.parametrize("passes", [None, 2])
def test_text_to_image_writes_a_png_and_says_how(loaded, tmp_path, capsys, passes):
    out = tmp_path / "answer"
    words = [*WORDS, "task=t2i", "prompt='a red, cube'", "height=32", "width=48", f"out={out}", "seed=3", "device=cpu"]
    assert main([*words, *([f"passes={passes}"] if passes else [])]) == 0
    result = json.loads((out / "result.json").read_text())
    (part,) = result["parts"]
    tokens = len(V.image_header(2, 3)) + 2 * 4
    assert part == {"type": "image", "file": "image-1.png", "grid": [2, 3], "tokens": tokens}
    assert cv2.imread(str(out / "image-1.png")).shape == (32, 48, 3)
    assert (result["task"], result["prompt"], result["seed"], result["ended"]) == ("t2i", "a red, cube", 3, "end")
    assert result["sampling"]["image"]["guidance"] == 5.0 and result["tokens"] == tokens + 1
    assert result["sampling"]["image"]["decoding"] == ("dida" if passes else "autoregressive")
    assert "image-1.png: 48 x 32 px" in capsys.readouterr().out
    assert loaded == [(("folder", "folder", None), {"dtype": None, "device": torch.device("cpu"), "quantisation": None})]
    assert sorted(path.name for path in out.iterdir()) == ["image-1.png", "result.json"]


def test_a_story_interleaves_and_is_the_same_for_the_same_seed(loaded, tmp_path, capsys):
    results = []
    for index, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(index)
        words = [*WORDS, "task=story", "prompt=once", "tokens=150", "height=32", "width=32", f"out={out}"]
        assert main([*words, f"seed={seed}", "text_top_p=1.0", "guidance=1"]) == 0
        results.append(json.loads((out / "result.json").read_text()))
        for part in results[-1]["parts"]:
            if part["type"] == "image":
                assert cv2.imread(str(out / part["file"])).shape == (32, 32, 3)
        assert results[-1]["tokens"] == sum(p["tokens"] for p in results[-1]["parts"]) + 1 <= 150
    assert results[0]["parts"] == results[1]["parts"] != results[2]["parts"]
    assert "\x1b" not in capsys.readouterr().out


def test_an_image_in_the_prompt_gives_the_answer_its_size(loaded, tmp_path):
    pytest.importorskip("emu_embodied.tokenizers.ibq")
    file, out = picture(tmp_path / "a.png", 64, 96), tmp_path / "answer"
    assert main([*WORDS, "task=x2i", "prompt=brighter", f"images=[{file}]", "passes=2", f"out={out}"]) == 0
    (part,) = json.loads((out / "result.json").read_text())["parts"]
    high, wide = part["grid"]
    assert abs(high * wide * 256 / 1024**2 - 1) < 0.05 and abs(wide / high - 1.5) < 0.05


def test_events_become_parts():
    text, codes = ByteText(), torch.tensor([[1, 2]])
    collector = Collector(text, rows=2)
    euro = text.encode("€")
    shown = [collector.add(TextPiece(0, (token,))) for token in euro]
    assert shown == ["", "", "€"]
    collector.add(TextPiece(1, (5,)))
    for token in (V.extra(60), *text.encode("plan"), V.extra(61), *text.encode("so"), V.span_end):
        collector.add(TextPiece(0, (token,)))
    for event in (ImageBegun(0, 1, 2), ImageFinished(0, codes), Ended(0, "end")):
        collector.add(event)
    answer = collector.answers[0]
    assert [(p.kind, p.text) for p in answer.parts[:3]] == [("text", "€"), ("global_cot", "plan"), ("text", "so")]
    assert isinstance(answer.parts[3], ImagePart) and answer.parts[3].tokens == len(V.image_header(1, 2)) + 3
    assert answer.tokens == 3 + 7 + 2 + answer.parts[3].tokens + 1 and answer.ended == "end"
    assert collector.answers[1].ended is None
    collector.add(Ended(1, "budget"))
    assert collector.answers[1].parts == [TextPart("text", text.decode([5]), 1)]


def test_pixels_are_whole_and_finite():
    assert image_pixels(torch.tensor([[0, 63]]), TinyVision()).reshape(-1, 3)[[0, -1]].tolist() == [[0] * 3, [255] * 3]
    broken = TinyVision()
    broken.scale.data.fill_(float("nan"))
    with pytest.raises(InputError, match="image"):
        image_pixels(torch.tensor([[0, 63]]), broken)


@pytest.fixture
def parts(monkeypatch) -> SimpleNamespace:
    """The three loaders' modules, giving the parts of the tiny model, which a test may change."""
    tiny = tiny_emu35()
    parts = SimpleNamespace(model=tiny.model, vision=tiny.vision, text=tiny.text)
    for module, name, part in (
        ("language_model", "load_language_model", "model"),
        ("vision", "load_vision_tokenizer", "vision"),
        ("text", "load_text_tokenizer", "text"),
    ):
        stub = SimpleNamespace(**{name: lambda path, part=part, **options: getattr(parts, part)})
        monkeypatch.setitem(sys.modules, f"emu_embodied.emu35.{module}", stub)
    return parts


def test_parts_that_fit_are_loaded_with_the_vectors_of_dida(parts, tmp_path):
    assert loading.load(tmp_path, tmp_path).noisy is None
    save_file({"hidden_token": torch.ones(32), "noised": torch.zeros(32)}, tmp_path / loading.DIDA)
    assert loading.load(tmp_path, tmp_path).noisy.hidden_token.sum() == 32


@pytest.mark.parametrize(
    "content",
    [{"hidden_token": torch.ones(32)}, {"hidden_token": torch.ones(32), "noised": torch.full((32,), torch.nan)}],
)
def test_wrong_vectors_of_dida_are_refused(parts, tmp_path, content):
    save_file(content, tmp_path / loading.DIDA)
    with pytest.raises(CheckpointError, match=loading.DIDA):
        loading.load(tmp_path, tmp_path)
    (tmp_path / loading.DIDA).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=loading.DIDA):
        loading.load(tmp_path, tmp_path)


def test_parts_that_do_not_fit_each_other_are_refused_with_both_numbers(parts, tmp_path):
    size = V.size
    parts.text = SimpleNamespace(vocabulary=replace(V, ranks=257))
    with pytest.raises(CheckpointError, match=f"{size}.*{size + 1}"):
        loading.load(tmp_path, tmp_path)
    parts.text = SimpleNamespace(vocabulary=replace(V, codebook_size=65))
    with pytest.raises(CheckpointError, match="64.*65"):
        loading.load(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["task=t3i"], ["task: t3i", "t2i"]),
        (["prompt=''"], ["prompt", "task t2i needs a text"]),
        (["prompt='  '"], ["prompt", "needs a text"]),
        (["task=explore", "prompt=''"], ["prompt", "a text or an image"]),
        (["task=vla"], ["images", "task vla needs at least one image"]),
        (["images=[missing.png]"], ["images: missing.png", "No such file"]),
        (["images=[{folder}]"], ["images", "leads to"]),
        (["images=[/dev/zero]"], ["images: /dev/zero", "leads to /dev/zero"]),
        (["images=[{text}]"], ["images", "no image that can be read"]),
        (["images=[{empty}]"], ["images", "no image that can be read"]),
        (["images=[{small}]"], ["images", "15 x 40 px", "16 px"]),
        (["images=[3]"], ["images"]),
        (["tokens=-5"], ["tokens: -5", "from 1"]),
        (["tokens=0"], ["tokens: 0"]),
        (["tokens=many"], ["tokens: many"]),
        (["tokens=40000"], ["tokens", "40000", "32768"]),
        (["height=32"], ["width", "multiples of 16"]),
        (["height=32", "width=40"], ["width: 40", "multiples of 16"]),
        (["height=0", "width=0"], ["height: 0"]),
        (["height=-16", "width=16"], ["height: -16"]),
        (["height=1024", "width=1024", "tokens=300"], ["tokens: 300", "64 x 64", "4168"]),
        (["tokens=7"], ["begins_with_image", "budget=7"]),
        (["max_images=-1"], ["max_images: -1"]),
        (["passes=0"], ["passes: 0"]),
        (["guidance=strong"], ["guidance: strong", "number"]),
        (["guidance=nan"], ["guidance"]),
        (["text_temperature=-1"], ["temperature: -1"]),
        (["image_top_p=0.0"], ["top_p: 0.0"]),
        (["image_top_k=-1"], ["image_top_k: -1"]),
        (["seed=-1"], ["seed: -1"]),
        (["device=tpu"], ["device: tpu"]),
        (["dtype=int8"], ["dtype: int8"]),
        (["out={taken}"], ["out", "it is taken"]),
        (["out={text}"], ["out", "no folder"]),
        (["out={text}/inside"], ["out", "folder"]),
    ],
)
def test_what_is_wrong_is_one_line_that_says_how_to_mend_it(loaded, tmp_path, capsys, words, expected):
    (tmp_path / "taken").mkdir()
    for name in ("taken/result.json", "text"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty").touch()
    picture(tmp_path / "small.png", 15, 40)
    places = {name: tmp_path / name for name in ("taken", "text", "empty")}
    places |= {"folder": tmp_path, "small": tmp_path / "small.png"}
    given = [word.format(**places) for word in ["prompt=hello", "tokens=200", f"out={tmp_path / 'new'}", *words]]
    last = {word.partition("=")[0]: word for word in given}
    assert main([*WORDS, *last.values()]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and all(part in printed.err for part in expected), printed.err
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_without_the_vectors_of_dida_draws_token_by_token_only(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, "load", lambda *arguments, **options: tiny_emu35(dida=False))
    assert main([*WORDS, "prompt=hello", "passes=2", f"out={tmp_path / 'new'}"]) == 2
    assert "dida.safetensors" in capsys.readouterr().err
