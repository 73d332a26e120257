"""The page of a planned run: whole in itself, right in its numbers, deaf to what hostile texts say, and usable by keys."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import gymnasium
import imageio
import numpy as np
import pytest
import torch
from browser import CHROMIUM, Tab
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from tiny import tiny_world_model

import emu_embodied.envs  # noqa: F401
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.commands import main
from emu_embodied.commands._config import compose_config
from emu_embodied.commands.report import plan_command
from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.rollouts.agents.mpc import run_episode
from emu_embodied.rollouts.agents.trace import KEPT, left_to_go, record_plan
from emu_embodied.rollouts.figures import GAP, LINE
from emu_embodied.rollouts.goals.task_costs import build_cost
from emu_embodied.rollouts.viewer.animation import FADED, FPS, SCALE, animate
from emu_embodied.rollouts.viewer.episode_record import Record, load_record, save_record
from emu_embodied.rollouts.viewer.html_report import Run, read_run, write_report
from emu_embodied.rollouts.viewer.page_builder import embed_json, film, psnr
from emu_embodied.storage.files import load_folder, save_folder
from emu_embodied.types import AGENT_POS, PIXELS, Observation

SEEDS, STEPS = (7, 8), 3
WORDS = [
    f"seed={SEEDS[0]}",
    "episodes=2",
    "videos=2",
    "candidates=5",
    "elites=2",
    "iterations=2",
    "horizon=4",
    f"steps={STEPS}",
]
HOSTILE = (
    "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked=1'> "
    '\u2028 " & {{style}} \u202e\U0001f9ca'
)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `emu-embodied plan` wrote, with a tiny model."""
    place, model = tmp_path_factory.mktemp("report"), tiny_world_model()
    world = replace(model.world, objects=dict(model.world.objects))
    save_checkpoint(place / "tiny", model.tokenizer, model.text, model.model, world, {})
    assert main(["plan", f"checkpoint={place / 'tiny'}", f"out={place / 'runs'}", *WORDS]) == 0
    (folder,) = (place / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def page(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(planned), f"out={out}"]) == 0
    return out.read_text()


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def frames_of(film: dict) -> np.ndarray:
    """The frames of a film in the page's data."""
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(film["sheet"].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    height, width, columns = film["height"], film["width"], film["columns"]
    cells = sheet[..., ::-1].reshape(-1, height, columns, width, 3).swapaxes(1, 2)
    return cells.reshape(-1, height, width, 3)[: film["count"]]


def shown(run: Run, tmp_path: Path, **facts: object) -> str:
    """The page of a run whose first episode's facts are changed."""
    record = replace(run.records[0], facts=run.records[0].facts | facts)
    write_report(replace(run, records=(record,)), tmp_path / "page.html", "emu-embodied plan")
    return (tmp_path / "page.html").read_text()


# What is kept


@pytest.mark.parametrize("prune", [False, True])
def test_what_is_kept_of_a_plan_is_what_it_was_chosen_among(prune: bool):
    env, model = gymnasium.make("emu_embodied/TabletopPush-v0"), tiny_world_model()
    observation, info = env.reset(seed=3)
    history = model.encode([Observation(observation[PIXELS], observation[AGENT_POS], info["task"])])
    config = CEMConfig(horizon=4, candidates=40, iterations=3, elites=4, prune=prune)
    plan = CEM(config, 0).plan(model, history, build_cost("positions", env, model))
    look = record_plan(plan, 5, 2, left_to_go(env, model.objects))
    dream = model.rollout(history, plan.actions[None, None])
    assert look.at == 5 and look.paths.shape == (KEPT, 4, len(model.objects), 2) and (np.diff(look.costs) >= 0).all()
    assert look.costs[0] >= plan.cost - 1e-6 and len(plan.candidate_costs) == (20 if prune else 40)
    whole = 2 if prune else 4  # what is not pruned goes on from its tokens, read anew: near ties may fall otherwise
    assert plan.future.codes_BSTN[:, :, :whole].equal(dream.codes_BSTN[:, :, :whole])
    np.testing.assert_allclose(look.chosen[:whole], dream.positions_BSTOD[0, 0, :whole], atol=1e-4)
    assert look.entropy.shape == look.distances.shape == (2,)


def test_a_record_comes_back_as_it_was(tmp_path: Path):
    env = gymnasium.make("emu_embodied/TabletopPush-v0")
    planner = CEM(CEMConfig(horizon=2, candidates=3, iterations=1, elites=1))
    run = run_episode(env, tiny_world_model(), planner, seed=2, execute=2, max_steps=3)
    save_record(tmp_path / "episode", run)
    record = load_record(tmp_path / "episode")
    for kept, was in ((record.real, run.frames), (record.imagined, run.imagined), (record.actions, run.actions)):
        assert np.array_equal(kept, was)
    assert (
        record.facts == run.row() | {"plan_costs": list(run.plan_costs)} and record.distances == run.distances.tolist()
    )
    assert [look.at for look in record.trace.plans] == [0, 2] and record.trace.objects == run.trace.objects
    for kept, was in zip(record.trace.plans, run.trace.plans, strict=True):
        assert all(np.array_equal(getattr(kept, name), getattr(was, name)) for name in ("paths", "costs", "chosen"))


def test_estimates_that_are_no_numbers_do_not_keep_a_run_from_its_record(tmp_path: Path):
    env = gymnasium.make("emu_embodied/TabletopPush-v0")
    planner = CEM(CEMConfig(horizon=2, candidates=3, iterations=1, elites=1))
    run = run_episode(env, tiny_world_model(), planner, seed=2, execute=2, max_steps=2)
    run.distances[1] = np.nan
    run.trace.plans[0].paths[0, 0, 1] = np.inf
    save_record(tmp_path / "episode", run)
    record = load_record(tmp_path / "episode")
    assert record.distances[1] is None and (record.trace.plans[0].paths[0, 0, 1] == 0).all()


# The page


def test_the_page_needs_nothing_but_itself(page: str):
    rules = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    parts = {part.split()[0]: part.split()[1:] for part in rules.split("; ")}
    assert parts["default-src"] == parts["connect-src"] == ["'none'"] and parts["img-src"] == ["data:"]
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert parts[rule] == [f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"]
    assert "unsafe" not in rules and "http:" not in page and "https:" not in page and "//" not in rules
    assert not re.search(r"<[^>]*\s(style|on\w+)\s*=", page) and "eval(" not in page and "innerHTML" not in page
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,"}
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_the_page_shows_what_was_recorded(page: str, planned: Path):
    data, result = data_of(page), json.loads((planned / "result.json").read_text())
    assert [episode["name"] for episode in data["episodes"]] == [f"seed {seed}" for seed in SEEDS]
    for seed, episode in zip(SEEDS, data["episodes"], strict=True):
        record = load_record(planned / f"episode-{seed}")
        assert np.array_equal(frames_of(episode["real"]), record.real)
        assert np.array_equal(frames_of(episode["imagined"]), record.imagined)
        plots = {plot["title"]: {line["name"]: line["values"] for line in plot["lines"]} for plot in episode["plots"]}
        frames = len(record.real)
        assert all(len(values) == frames for lines in plots.values() for values in lines.values())
        assert plots["distance left"]["real"] == pytest.approx(record.distances, abs=1e-3)
        assert plots["distance left"]["imagined"][0] is None and plots["distance left"]["imagined"][1] is not None
        costs = record.facts["plan_costs"]
        assert plots["cost of the plan"][""][:3] == pytest.approx([costs[0], costs[0], costs[1]], abs=1e-3)
        fans = episode["fans"]
        assert [plan["at"] for plan in fans["plans"]] == [0, 2] and fans["scale"] == [16.0, -16.0]
        assert all(len(plan["paths"]) == 5 for plan in fans["plans"])
        assert all(len(path) == 2 * 4 for plan in fans["plans"] for path in plan["chosen"])
    low, high = result["wilson_95"]
    assert (
        f"{result['successes']} of 2, {result['rate']:.0%} (Wilson&#x27;s 95% interval {low:.0%} to {high:.0%})" in page
    )
    assert html.escape(f"emu-embodied plan checkpoint={planned.parent.parent / 'tiny'}") in page
    assert result["versions"]["torch"] in page and "ArrowRight" in page and "ArrowUp" in page


def test_hostile_texts_stay_texts(planned: Path, tmp_path: Path):
    run = read_run(planned)
    result = run.result | {"settings": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    page = shown(replace(run, result=result, folder=tmp_path / "<b>&"), tmp_path, instruction=HOSTILE)
    assert page.count("<script") == page.count("</script") == 2 and page.count("<style") == 1
    assert "<img" not in page and "<!--" not in page and "<b>" not in page and html.escape(HOSTILE) in page
    assert data_of(page)["episodes"][0]["instruction"] == HOSTILE


@given(st.recursive(st.text(st.characters(codec=None)), lambda inner: st.dictionaries(st.text(), inner)))
def test_any_text_survives_the_script_element_and_cannot_leave_it(value):
    text = embed_json(value)
    assert json.loads(text) == value and text.isascii() and not set("<>&") & set(text)


def test_ten_rollouts_of_noise_stay_below_ten_megabytes(tmp_path: Path, planned: Path):
    rng, run = np.random.default_rng(0), read_run(planned)
    noise = rng.integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    facts, trace = run.records[0].facts, run.records[0].trace
    plans = replace(trace, plans=tuple(replace(trace.plans[0], at=2 * i) for i in range(25)))
    record = Record(facts, np.zeros((49, 2), np.float32), [1.0] * 50, noise, noise[::-1], noise[:0], plans)
    sizes = []
    for count in (1, 2):
        write_report(replace(run, records=(record,) * count), tmp_path / "page.html")
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert sizes[0] + 9 * (sizes[1] - sizes[0]) < 10e6


def test_films_are_exact_as_long_as_they_are_small():
    frames = np.random.default_rng(0).integers(0, 256, (7, 16, 24, 3), dtype=np.uint8)
    assert np.array_equal(frames_of(film(frames)), frames) and film(frames[:0]) is None
    assert psnr(frames, frames) == [60.0] * 7
    assert psnr(frames[:1] * 0, frames[:1] * 0 + 255) == [0.0]


@pytest.mark.parametrize("agent", ["oracle", "random"])
def test_agents_without_a_model_have_a_page_too(agent: str, tmp_path: Path):
    assert main(["plan", f"agent={agent}", f"out={tmp_path}", *WORDS[2:], "episodes=1", "steps=2"]) == 0
    (folder,) = tmp_path.iterdir()
    assert main(["report", str(folder)]) == 0
    (episode,) = data_of((folder / "report.html").read_text())["episodes"]
    assert episode["real"]["count"] == 3 and (episode["imagined"] is None) == (episode["fans"] is None) == (
        agent == "random"
    )
    if agent == "oracle":  # what it imagined is what happened
        distance = {line["name"]: line["values"][1:] for line in episode["plots"][0]["lines"]}
        assert distance["imagined"] == pytest.approx(distance["real"], abs=1e-3)


def test_subgoals_are_shown_where_a_run_has_them(planned: Path, tmp_path: Path):
    run = read_run(planned)
    record = replace(run.records[0], subgoals=run.records[0].real[:2])
    write_report(replace(run, records=(record,)), tmp_path / "page.html")
    assert len(data_of((tmp_path / "page.html").read_text())["episodes"][0]["subgoals"]) == 2


# The command


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["env=pusht", "episodes=3", "goal=reward"],
        ["env.options.cubes=[1,1]", "env.options.shift=camera", "passes=2", "checkpoint=\"'a b, c'\""],
    ],
)
def test_the_command_on_the_page_makes_the_same_settings(words: list[str]):
    config = OmegaConf.to_container(compose_config("plan", words))
    command = plan_command(config | {"out": "elsewhere", "resume": "there"})
    again = shlex.split(command)[2:]
    assert command.startswith("emu-embodied plan") and OmegaConf.to_container(compose_config("plan", again)) == config
    assert len(again) <= len(words) and plan_command(None) == ""


def test_the_first_word_is_the_run_and_the_page_lies_beside_it(planned: Path, tmp_path: Path, capsys):
    folder = tmp_path / "it's, a [run]"
    shutil.copytree(planned, folder)
    assert main(["report", str(folder)]) == 0 and "2 episodes" in capsys.readouterr().out
    first = (folder / "report.html").read_bytes()
    assert main(["report", f"run={planned}", f"out={tmp_path / 'other.html'}"]) == 0
    assert len(first) > 10_000 and (tmp_path / "other.html").is_file() and not (planned / "report.html").exists()
    assert main(["report"]) == 2 and "run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no such folder"),
        (lambda folder: (folder / "result.json").unlink(), "it has no result.json; give a folder"),
        (lambda folder: (folder / "result.json").write_text('{"episodes": ['), "must be UTF-8 JSON"),
        (lambda folder: (folder / "result.json").write_text("[]"), "it is no planning result"),
        (
            lambda folder: (folder / "result.json").write_text('{"episodes": [{}], "wilson_95": 1}'),
            "no planning result",
        ),
        (
            lambda folder: (folder / "result.json").write_text('{"episodes": [{"seed": 7}], "wilson_95": 1}'),
            "not those of a planned run",
        ),
        (
            lambda folder: [shutil.rmtree(x) for x in folder.glob("episode-?")],
            "no recorded episode; plan with videos=1",
        ),
        (lambda folder: (folder / "episode-7/frames.safetensors").write_bytes(b"x"), "frames.safetensors"),
        (lambda folder: (folder / "episode-7/episode.json").unlink(), "episode.json"),
        (lambda folder: save_folder(folder / "episode-7", {}, {"episode": {}}), "it is no recorded episode"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line_that_says_how_to_mend_it(harm, expected, planned, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(planned, folder)
    harm(folder)
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (folder / "report.html").exists()


def test_records_whose_parts_do_not_fit_are_refused(planned: Path, tmp_path: Path):
    whole = load_record(planned / "episode-7")
    document = json.loads((planned / "episode-7/episode.json").read_text())
    frames = {"real": torch.from_numpy(whole.real), "imagined": torch.from_numpy(whole.imagined)}
    for changed in (
        {"real": frames["real"][:-1]},
        {"imagined": frames["imagined"][:-1]},
        {"real": frames["real"].float()},
        {name: frame[:, :0, :0] for name, frame in frames.items()},
    ):
        save_folder(
            tmp_path / "episode", {"frames": frames | changed, "plans": {}}, {"episode": document | {"thoughts": None}}
        )
        with pytest.raises(DatasetError, match="no recorded episode"):
            load_record(tmp_path / "episode")
    with pytest.raises(CheckpointError):
        load_record(tmp_path / "nowhere")


@pytest.mark.parametrize("plans", [[0, 10**12], [2, 0], [0, 0], [-1, 0]])
def test_plans_are_of_the_episodes_own_steps_and_in_order(planned: Path, tmp_path: Path, plans: list[int]):
    tensors, documents = load_folder(planned / "episode-7")
    documents["episode"]["thoughts"]["plans"] = plans
    looks = {name.partition(".")[2]: tensor for name, tensor in tensors["plans"].items() if name.startswith("0.")}
    tensors["plans"] = {f"{i}.{name}": tensor.clone() for i in range(2) for name, tensor in looks.items()}
    save_folder(tmp_path / "episode", tensors, documents)
    with pytest.raises(DatasetError, match="plans at"):
        load_record(tmp_path / "episode")


def test_an_episode_is_told_once(planned: Path, tmp_path: Path):
    shutil.copytree(planned, tmp_path / "run")
    result = json.loads((planned / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"episodes": result["episodes"] * 2}))
    with pytest.raises(DatasetError, match="same seed"):
        read_run(tmp_path / "run")


# In a browser


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_and_keys_move_it(scheme: str, planned: Path, tmp_path: Path):
    pytest.importorskip("aiohttp", reason="drives the browser")
    shown(read_run(planned), tmp_path, instruction=HOSTILE)
    text = "document.getElementById('step').textContent"
    seen = "new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    inked = f"[...document.querySelectorAll('figure:not([hidden]) canvas')].map(c => {seen})"
    with Tab((tmp_path / "page.html").as_uri(), tmp_path / "profile", scheme=scheme) as tab:
        tab.wait("document.querySelectorAll('.plot svg[role]').length === 4")
        assert tab.run("document.getElementById('instruction').textContent") == HOSTILE
        assert tab.run("window.hacked === undefined")
        place = 0
        for i in range(50):
            key = ("ArrowRight", "ArrowRight", "ArrowLeft")[i % 3]
            place = max(0, min(STEPS, place + (1 if key == "ArrowRight" else -1)))
            tab.press(key)
            assert tab.run(text) == f"step {place} of {STEPS}"
        assert len(tab.run(inked)) == 4 and min(tab.run(inked)) > 2
        tab.press(" ")  # plays on, from the start where it was at the end
        tab.wait(f"{text} === 'step {STEPS} of {STEPS}' && document.getElementById('play').textContent === 'Play'")
        background = tab.run("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        tab.screenshot(tmp_path / "page.png")
        assert tab.faults == [] and tab.requests == [(tmp_path / "page.html").as_uri()]
    assert cv2.imread(str(tmp_path / "page.png")).std() > 5


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_on_a_phone_letters_keep_their_size_and_nothing_is_cut(page: str, tmp_path: Path):
    pytest.importorskip("aiohttp", reason="drives the browser")
    (tmp_path / "page.html").write_text(page)
    letters = (
        "[...document.querySelectorAll('.plot text')].map(t => parseFloat(getComputedStyle(t).fontSize) "
        "* t.ownerSVGElement.clientWidth / t.ownerSVGElement.viewBox.baseVal.width)"
    )
    cut = "[...document.querySelectorAll('figcaption')].filter(c => c.scrollWidth > c.clientWidth).length"
    legend = "[...document.querySelectorAll('.plot .swatch + span')].map(s => s.textContent.trim())"
    with Tab((tmp_path / "page.html").as_uri(), tmp_path / "profile") as tab:
        tab.wait("document.querySelectorAll('.plot svg[role]').length === 4")
        for width in (1280, 375):
            tab.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
            tab.wait(f"innerWidth === {width}")
            tab.wait(f"Math.min(...{letters}) >= 11.99")
            assert tab.run("document.documentElement.scrollWidth <= innerWidth") and tab.run(cut) == 0
        assert {"real", "imagined"} <= set(tab.run(legend))
        assert "cost" in tab.run("document.querySelector('#fan figcaption').textContent")
        tab.run("document.getElementById('scrubber').focus()")
        tab.press("ArrowUp")  # the slider's own key: no other episode is shown
        tab.wait("document.getElementById('step').textContent.startsWith('step 1 ')")
        assert tab.run("document.getElementById('episode').value") == "0" and tab.faults == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_up_and_down_switch_episodes(page: str, tmp_path: Path):
    pytest.importorskip("aiohttp", reason="drives the browser")
    (tmp_path / "page.html").write_text(page)
    with Tab((tmp_path / "page.html").as_uri(), tmp_path / "profile") as tab:
        name = "document.getElementById('episode').selectedOptions[0].textContent"
        tab.wait("document.querySelectorAll('.plot svg[role]').length === 4")
        for key, seed in (("ArrowDown", 8), ("ArrowDown", 7), ("ArrowUp", 8)):
            tab.press(key)
            tab.wait(f"{name}.startsWith('seed {seed},')")
        assert tab.faults == []


def test_a_run_becomes_a_rerun_recording(planned: Path, tmp_path: Path, capsys):
    pytest.importorskip("rerun")
    out = tmp_path / "run.rrd"
    assert main(["report", str(planned), f"rerun={out}", f"out={tmp_path / 'page.html'}"]) == 0
    assert str(out) in capsys.readouterr().out and not list(tmp_path.glob(".*"))
    done = subprocess.run([sys.executable, "-m", "rerun", "rrd", "print", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for seed in SEEDS:
        for name in ("real", "imagined", "difference", "distance", "chosen", "candidates"):
            assert re.search(rf"seed.{{1,4}}{seed}/[^\n]*{name}", done.stdout), (seed, name)
    assert main(["report", str(planned), f"rerun={tmp_path / 'run.txt'}", f"out={tmp_path / 'page.html'}"]) == 2
    assert "ends in .rrd" in capsys.readouterr().err


def test_a_run_becomes_a_moving_picture(planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "plan.gif"
    assert main(["report", str(planned), f"gif={out}", f"out={tmp_path / 'page.html'}"]) == 0
    record, moving = read_run(planned).records[0], imageio.mimread(out)
    assert f"report: {out}" in capsys.readouterr().out and list(tmp_path.glob(".*")) == []
    with Image.open(out) as image:
        milliseconds = [image.seek(t) or image.info["duration"] for t in range(image.n_frames)]
    step = 1000 // FPS
    assert milliseconds == [step] * (len(record.real) - 1) + [step + 1000]  # it rests on the last one for a second
    assert len(moving) == len(record.real)
    side, top = SCALE * record.real.shape[1], LINE
    for t, picture in enumerate(moving):
        real, imagined = (
            picture[top : top + side, left : left + side, :3].astype(int) for left in (0, side + GAP)
        )  # a GIF has 256 colours
        for shown, frame in ((real, record.real[t]), (imagined, record.imagined[t])):
            assert np.abs(shown[::SCALE, ::SCALE] - frame).mean() < 12
    candidates = moving[0][top : top + side, 2 * (side + GAP) : 3 * side + 2 * GAP, :3]
    assert 255 * FADED > 135 and (candidates.max(-1) < 135).sum() > side  # lines, on what is faded


def test_a_moving_picture_needs_plans_and_a_name(planned: Path, tmp_path: Path):
    record = read_run(planned).records[0]
    for bad, name in ((replace(record, trace=None), "x.gif"), (record, "x.mp4")):
        with pytest.raises(DatasetError, match="gif"):
            animate(bad, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
