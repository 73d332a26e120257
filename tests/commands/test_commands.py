"""The dispatcher: verbs, help, configuration errors and exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from emu_embodied.commands import _config, _help, doctor, main, verbs
from emu_embodied.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def helped() -> list[tuple[str, str, str]]:
    """Every verb as it is by default, and every option of a group with one of the verbs that have it."""
    found = [(verb, "", "") for verb in sorted(verbs())]
    for verb, group in (("collect", "env"), ("plan", "planner"), ("train", "preset")):
        found += [(verb, group, option) for option in _config.group_options(verb)[group]]
    return found


@pytest.fixture
def toy_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration package with every kind of key: typed, nested, required, interpolated, and two groups."""
    files = {
        "__init__.py": "",
        "walk.yaml": "defaults: [_self_, {env: flat}, {preset: null}]\n"
        "# how many, above the key; e.g. 9\nsteps: 3\nspeed: 0.5\nname: bob\nfast: false\n"
        "model: {width: 4}\ntarget: null\nsizes: [1, 2]\ndouble: ${steps}\n",
        "need.yaml": "out: ???\n",
        "env/flat.yaml": "size: 64\n",
        "env/hilly.yaml": "size: 96\nslope: 1.0  # of the hills; e.g. 2.0\n",
        "preset/quick.yaml": "# @package _global_\nsteps: 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "toy_configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_config, "CONFIGS", "toy_configs")
    yield
    sys.modules.pop("toy_configs", None)


def test_every_verb_has_help_and_a_configuration():
    for verb, text in verbs().items():
        assert text and (CONFIGS / f"{verb.replace('-', '_')}.yaml").is_file(), verb
        assert main([verb, "--help"]) == 0


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_overview_lists_the_verbs(words: list[str], capsys: pytest.CaptureFixture):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed and text.partition("\n")[0] in printed for verb, text in verbs().items())


def test_version(capsys: pytest.CaptureFixture):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("emu-embodied 0.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["doctr"], ["command: doctr", "did you mean doctor?"]),
        (["--verbose"], ["command: --verbose", "doctor"]),
        (["doctor", "rendr=false"], ["key: rendr", "did you mean render?"]),
        (["train", "seed=3"], ["key: seed", "recipe.seed", "choose among: env, preset, recipe, stage", "train --help"]),
        (["train", "recipe.hold_out=3"], ["did you mean recipe.held_out?"]),
        (["doctor", "render=7"], ["render: 7", "true or false"]),
        (["doctor", "render"], ["argument: render", "key=value"]),
        (["doctor", "render=true,false"], ["argument: render=true,false"]),
        (["doctor", "render=[1"], ["argument: render=[1"]),
        (["doctor", "=1"], ["argument: =1"]),
        (["doctor", "+_target_=os.system"], ["argument: +_target_=os.system"]),
        (["doctor", "~render"], ["argument: ~render"]),
        (["doctor", "hydra.run.dir=x"], ["key: hydra.run.dir"]),
        (["doctor", "render=a\nb!"], ["argument: 'render=a\\nb!'"]),
    ],
)
def test_a_wrong_word_is_one_line_that_says_how_to_mend_it(words, expected, capsys: pytest.CaptureFixture):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("emu-embodied: error: ") and all(part in printed.err for part in expected)


def test_overrides_reach_the_configuration(toy_configs):
    words = [
        "env=hilly",
        "env.slope=2",
        "preset=quick",
        "speed=1",
        "name='a, b'",
        "model.width=8",
        "target=[1]",
        "sizes=[]",
    ]
    config = _config.compose_config("walk", words)
    assert dict(config.env) == {"size": 96, "slope": 2} and config.steps == config.double == 1
    assert (config.speed, config.name, config.model.width, config.target, config.sizes) == (1, "a, b", 8, [1], [])


@pytest.mark.parametrize(
    ("word", "field", "remedy"),
    [
        ("env=hily", "env", "did you mean hilly? choose among: flat, hilly"),
        ("preset=slow", "preset", "choose among: quick"),
        ("env=null", "env", "choose among: flat, hilly"),
        ("enw=flat", "key", "did you mean env?"),
        ("env.slope=1.0", "key", "choose among"),
        ("model.widht=1", "key", "did you mean model.width?"),
        ("model={_target_: os.system}", "arguments", ""),
        ("model=3", "model", "a mapping"),
        ("steps=many", "steps", "a whole number"),
        ("steps=1.5", "steps", "a whole number"),
        ("steps=true", "steps", "a whole number"),
        ("steps=null", "steps", "a whole number"),
        ("steps=${nothing}", "arguments", "nothing"),
        ("speed=nan", "speed", "finite"),
        ("speed=-inf", "speed", "finite"),
        ("name=7", "name", "name=\"'7'\""),
        ("sizes=1", "sizes", "a list"),
    ],
)
def test_a_bad_value_is_a_config_error(word: str, field: str, remedy: str, toy_configs):
    with pytest.raises(ConfigError) as caught:
        _config.compose_config("walk", [word])
    assert caught.value.field == field and remedy in caught.value.remedy and "\n" not in str(caught.value)


def test_a_key_without_a_default_must_be_given(toy_configs):
    with pytest.raises(ConfigError, match="out=..."):
        _config.compose_config("need", [])
    assert _config.compose_config("need", ["out=x"]).out == "x"
    assert _config.compose_config("need", [], complete=False)


def test_help_names_the_groups(toy_configs, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("emu_embodied.commands.verbs", lambda: {"walk": "Walks."})
    assert main(["walk", "env=hilly", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Walks." in printed and "env=..." in printed and "  hilly" in printed and "  env.slope=1.0" in printed
    assert "  env.slope=1.0\n      of the hills\n      Example: env.slope=2.0\n" in printed
    assert "  steps=3\n      how many, above the key\n      Example: steps=9\n" in printed


@pytest.mark.parametrize(("verb", "group", "option"), helped())
def test_every_key_is_explained_with_an_example_that_the_verb_takes(verb: str, group: str, option: str):
    verb, words = verb.replace("-", "_"), [f"{group}={option}"] if group else []
    keys = [key for section in _help.describe(verb, words) for key in section.keys]
    assert keys and len({key.name for key in keys}) == len(keys)
    assert not [key.name for key in keys if not key.text or not key.example]
    _config.compose_config(verb, [*words, *(f"{key.name}={key.example}" for key in keys)])


@pytest.mark.parametrize(
    ("verb", "old", "new"), [
        ("collect", "root=here", "out=here"),
        ("evaluate_policy", "max_steps=7", "steps=7"),
        ("train", "recipe.trajectory.untold=0.2", "recipe.trajectory.unconditional=0.2"),
    ]
)
def test_old_words_work_and_the_new_one_is_named(verb: str, old: str, new: str, capsys: pytest.CaptureFixture):
    needed = [f"{key.name}={key.example}" for key in _help.describe(verb)[0].keys if key.default == "???"]
    assert _config.compose_config(verb, [*needed, old]) == _config.compose_config(verb, [*needed, new])
    key, _, today = old.partition("=")[0], None, new.partition("=")[0]
    assert capsys.readouterr().err == f"emu-embodied: {key}= is now called {today}=\n"
    with pytest.raises(ConfigError, match="key: root"):
        _config.compose_config("play", ["root=here"])


def complete(shell: str, line: str, script: Path) -> set[str]:
    """What a real shell offers at the end of a line."""
    if shell == "bash":
        ask = f"source {script}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _emu_embodied"
        command = ["bash", "--norc", "-c", f'{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"']
    else:
        command = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {found.partition("\t")[0] for found in done.stdout.split("\n") if found}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_verbs_keys_and_values(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    if shell == "zsh":  # completes in a terminal only: read it
        subprocess.run(["zsh", "-f", "-n", script], check=True)
        return
    assert {"plan", "play"} <= complete(shell, "emu-embodied pl", script) <= {"plan", "play"}
    assert {"seed=", "seconds="} <= complete(shell, "emu-embodied plan se", script)
    value = "" if shell == "bash" else "env="
    assert complete(shell, "emu-embodied plan seed=3 env=push", script) == {f"{value}pusher", f"{value}pusht"}
    value = "" if shell == "bash" else "prune="
    assert f"{value}true" in complete(shell, "emu-embodied plan prune=t", script)
    assert complete(shell, "emu-embodied completion z", script) == {"zsh"}


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_verb_cleanly(stop: int, code: int, monkeypatch, capsys: pytest.CaptureFixture):
    cleaned = []

    def run(config):
        try:
            os.kill(os.getpid(), stop)
            time.sleep(5)
        except KeyboardInterrupt:
            cleaned.append(True)
            raise

    monkeypatch.setattr(doctor, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["doctor"]) == code
    printed = capsys.readouterr().err
    assert cleaned and printed.count("\n") == 1 and signal.getsignal(signal.SIGTERM) is before


def test_doctor_names_extras_that_bring_what_is_missing():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra, distributions in doctor.OPTIONAL.values():
        assert any(wanted.startswith(distributions) for wanted in project["optional-dependencies"][extra]), extra


def test_doctor_names_a_missing_package(monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(doctor.REQUIRED, "cv2", ("no-such-distribution",))
    assert main(["doctor", "render=false"]) == 2
    assert "cv2: not installed" in capsys.readouterr().err


def test_doctor_names_failing_rendering(monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(doctor, "RENDER", "raise RuntimeError('no display')")
    assert main(["doctor"]) == 2
    assert "offscreen render: RuntimeError: no display; install EGL" in capsys.readouterr().err


def test_the_command_in_a_process_of_its_own():
    command = [sys.executable, "-m", "emu_embodied", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout and "offscreen render" in done.stdout and "works" in done.stdout
    wrong = subprocess.run([*command, "rendr=1"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
