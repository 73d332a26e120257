"""The engine cache: every ingredient counts, and what is damaged is built again and never loaded."""

import logging
import os
import shutil
from dataclasses import fields, replace

import pytest

from emu_embodied.errors import EngineError
from emu_embodied.inference.engines.cache import FOLDER, EngineCache, EngineKey
from emu_embodied.storage import atomic, files

KEY = EngineKey("w0", "c0", "s0", "denoise", "tensorrt", "11.4", "9.0", "580.65", "bf16", (1, 16))
ENGINE = bytes(range(256)) * 40


class Builder:
    """Counts how often it is asked."""

    def __init__(self, engine: bytes = ENGINE) -> None:
        self.engine, self.calls = engine, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.engine


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def filled(cache: EngineCache):
    """The entry's folder, after a first build."""
    assert cache.fetch(KEY, Builder()) == ENGINE
    return cache.path(KEY)


def assert_rebuilt(cache: EngineCache, caplog, warnings: int = 1) -> None:
    """The damaged entry is replaced with `warnings` remarks, and good from then on."""
    build, caplog.handler.level = Builder(), logging.WARNING
    caplog.clear()
    assert cache.fetch(KEY, build) == ENGINE and build.calls == 1
    assert len(caplog.records) == warnings, caplog.text
    assert cache.fetch(KEY, build) == ENGINE and build.calls == 1
    assert len(caplog.records) == warnings


@pytest.mark.parametrize("field", [field.name for field in fields(EngineKey)])
def test_every_ingredient_makes_another_engine(cache, field):
    other = replace(KEY, **{field: (1, 16, 64) if field == "profiles" else "other"})
    assert other.digest != KEY.digest and len(KEY.digest) == 64
    filled(cache)
    build = Builder(b"other")
    assert cache.fetch(other, build) == b"other" and build.calls == 1
    assert cache.fetch(KEY, Builder(b"never")) == ENGINE


def test_an_engine_is_built_once(cache, caplog):
    build = Builder()
    for each in (cache, cache, EngineCache(cache.folder)):
        assert each.fetch(KEY, build) == ENGINE
    assert build.calls == 1 and not caplog.records
    assert cache.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["denoise.tensorrt", "key.json", files.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "grow", "remove", "link"])
def test_a_damaged_entry_is_built_again(cache, caplog, tmp_path, name, damage):
    file = filled(cache) / name
    data = file.read_bytes()
    middle = len(data) // 2
    if damage in ("remove", "link"):
        file.unlink()
    if damage == "link":  # the right bytes, but not in the cache's own folder
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
    elif damage != "remove":
        flipped = data[:middle] + bytes([data[middle] ^ 128]) + data[middle + 1 :]
        file.write_bytes({"flip": flipped, "truncate": data[:middle], "empty": b"", "grow": data + b"x"}[damage])
    assert_rebuilt(cache, caplog)


def test_no_bit_of_an_engine_may_flip(cache, caplog):
    entry = filled(cache)
    file, size = entry / "denoise.tensorrt", len(ENGINE)
    for bit in range(0, 8 * size, 8 * size // 64 + 1):
        data = bytearray(ENGINE)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        assert_rebuilt(cache, caplog)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "5", '{"weights": NaN}', "{}"])
def test_a_key_of_right_sums_that_is_none_is_built_again(cache, caplog, text):
    files.save_folder(cache.path(KEY), {}, {"key.txt": text, "denoise.tensorrt": ENGINE})
    entry = cache.path(KEY)
    (entry / "key.txt").rename(entry / "key.json")
    (entry / files.MANIFEST).write_text((entry / files.MANIFEST).read_text().replace("key.txt", "key.json"))
    assert_rebuilt(cache, caplog)


def test_an_entry_that_is_of_no_use_is_built_again(cache, caplog):
    used = []

    def use(engine: bytes) -> None:
        used.append(engine)
        if engine != ENGINE:
            raise EngineError("engine", "garbage", "build it again")

    assert cache.fetch(KEY, Builder(b"garbage")) == b"garbage"
    assert cache.fetch(KEY, Builder(), use) == ENGINE and used == [b"garbage", ENGINE]
    assert len(caplog.records) == 1 and cache.fetch(KEY, Builder(b"never"), use) == ENGINE
    with pytest.raises(EngineError, match="garbage"):
        cache.fetch(replace(KEY, step="commit"), Builder(b"bad"), use)
    assert not cache.path(replace(KEY, step="commit")).exists()


def test_an_entry_under_another_name_is_not_taken(cache, caplog):
    entry, other = filled(cache), replace(KEY, driver="other")
    shutil.copytree(entry, cache.path(other))
    build = Builder(b"other")
    assert cache.fetch(other, build) == b"other" and build.calls == 1
    assert "another engine" in caplog.text and len(caplog.records) == 1


def test_an_entry_that_is_a_link_is_not_taken(cache, caplog, tmp_path):
    entry = filled(cache)
    shutil.move(entry, tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert_rebuilt(cache, caplog)
    assert not entry.is_symlink() and (tmp_path / "elsewhere" / "denoise.tensorrt").read_bytes() == ENGINE


def test_a_file_in_an_entrys_place_is_built_over(cache, caplog):
    entry = filled(cache)
    shutil.rmtree(entry)
    entry.write_bytes(ENGINE)
    assert_rebuilt(cache, caplog)


@pytest.mark.parametrize("moment", ["write", "sync", "_swap"])
def test_a_write_that_fails_leaves_nothing_and_the_engine_serves(cache, caplog, monkeypatch, moment):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, moment, fail)
        build = Builder()
        assert cache.fetch(KEY, build) == ENGINE and build.calls == 1
    assert not list(cache.folder.iterdir())
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert_rebuilt(cache, caplog, warnings=0)


def test_a_build_that_is_interrupted_leaves_nothing(cache):
    def interrupted() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch(KEY, interrupted)
    assert not cache.folder.exists() or not list(cache.folder.iterdir())


def test_engines_are_synced_before_they_get_their_name(cache, monkeypatch):
    events = []
    sync, rename = atomic.sync, os.rename
    monkeypatch.setattr(atomic, "sync", lambda path: (events.append(path.name), sync(path)))
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("rename"), rename(old, new)))
    filled(cache)
    before = events[: events.index("rename")]
    assert {"denoise.tensorrt", "key.json", files.MANIFEST} <= set(before)


def test_the_folder_comes_from_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path / "environment"))
    assert EngineCache(tmp_path / "argument").folder == tmp_path / "argument"
    assert EngineCache().folder == tmp_path / "environment"
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EngineCache().folder == tmp_path / ".cache" / "emu-embodied" / "engines"


def test_a_place_in_nobodys_home_is_named(monkeypatch):
    monkeypatch.setenv(FOLDER, "~nobody-of-that-name/engines")
    with pytest.raises(EngineError, match=f"{FOLDER}: ~nobody-of-that-name/engines; .*Set {FOLDER}"):
        EngineCache()
