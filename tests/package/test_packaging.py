"""What a user installs: the wheel, built from the sdist, holds every file and works away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import emu_embodied

ROOT = Path(__file__).resolve().parents[2]
# A top folder of the checkout -> its place in the wheel.
PLACES = {"emu_embodied": "emu_embodied"} | {
    name: f"emu_embodied/{name}" for name in ("envs", "policies", "rollouts", "configs")
}
CACHES = ("__pycache__", ".*", "*.egg-info", "build", "dist", "runs")


def copy_tree(target: Path) -> None:
    """Copies the checkout without what git ignores, so that building leaves it clean."""
    command = [shutil.which("git") or "false", "ls-files", "-co", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:  # an exported tree
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*CACHES))
        return
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():  # listed, but perhaps deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def package_files(tree: Path) -> dict[str, str]:
    """Every file of the package in a source tree -> its place in the wheel."""
    files = {}
    for top, place in PLACES.items():
        for path in (tree / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(tree / top).as_posix()
                files[f"{top}/{name}"] = f"{place}/{name}"
    return files


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tree/` (the sources), and `tree/dist/` with the sdist and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("packaging")
    copy_tree(folder / "tree")
    command = [sys.executable, "-m", "build", "--no-isolation", "."]
    done = subprocess.run(command, cwd=folder / "tree", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_wheel_and_sdist_hold_every_file_of_the_package(built: Path):
    expected = package_files(built / "tree")
    assert {"emu_embodied/envs/tabletop/assets/tabletop.xml", "emu_embodied/configs/doctor.yaml"} <= set(expected.values())
    shipped = package_files(ROOT)
    expected |= {name: place for name, place in shipped.items() if "emu_embodied/checkpoints/" in name}
    (wheel,) = (built / "tree/dist").glob("*.whl")
    (sdist,) = (built / "tree/dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert wheel.name.startswith(f"emu_embodied-{emu_embodied.__version__}-")  # said in one place
    assert sorted(set(expected.values()) - set(zipfile.ZipFile(wheel).namelist())) == []
    assert sorted(set(expected) - in_sdist) == []


def test_the_wheel_works_away_from_the_checkout(built: Path, tmp_path: Path):
    (wheel,) = (built / "tree/dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    folders = {place.rpartition("/")[0] for place in package_files(built / "tree").values() if place.endswith(".py")}
    code = f"""
import importlib
for name in {sorted(folder.replace("/", ".") for folder in folders)}:
    print(importlib.import_module(name).__file__)
from emu_embodied.commands import main
raise SystemExit(main(["doctor", "--help"]))
"""
    away = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=away, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = done.stdout.splitlines()[: len(folders)]
    assert len(files) == len(folders) and all(Path(file).is_relative_to(tmp_path / "site") for file in files), files
    assert "render=true" in done.stdout
