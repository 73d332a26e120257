"""Whether folders survive kills, full disks, damage and hostile files; knows the storage module only."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hub_cache import snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from emu_embodied.errors import CheckpointError
from emu_embodied.storage import files as storage
from emu_embodied.storage.atomic import write_bytes, write_json
from emu_embodied.storage.files import load_file, load_folder, save_folder
from emu_embodied.storage.regular import read_json

KILL_ROUNDS = int(os.environ.get("EMU_EMBODIED_KILL_ROUNDS", "15"))
DAMAGE_ROUNDS = int(os.environ.get("EMU_EMBODIED_DAMAGE_ROUNDS", "10"))  # of each kind, for each file
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
# One request a line: the first version to save, and the file-system call to die at (0: save on until killed).
SAVER = """
import os, sys, torch
from emu_embodied.storage.files import save_folder
torch.set_num_threads(1)
for line in sys.stdin:
    version, die_at = map(int, line.split())
    if (pid := os.fork()) == 0:
        calls = [0]
        def count(event, arguments):
            calls[0] += event == "open" or event.startswith(("os.", "shutil."))
            if calls[0] == die_at:
                os._exit(9)
        if die_at:
            sys.addaudithook(count)
        while True:
            weights = {f"w{i}": torch.full((5000,), version) for i in range(2)}
            save_folder(sys.argv[1], {"model": weights}, {"config": {"version": version}}, max_shard_bytes=50_000)
            if die_at:
                os._exit(0)
            version += 1
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def saver(tmp_path):
    """Returns a function that sends the saving process a request and returns the pid of the child that serves it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path / "last")], **pipes) as process:

        def request(version: int, die_at: int = 0) -> int:
            process.stdin.write(f"{version} {die_at}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        request.exit_code = lambda: int(process.stdout.readline())
        yield request
        process.stdin.close()


def small_folder(path: Path, version: int = 1) -> Path:
    tensors = {"model": {"a": torch.full((40,), float(version)), "b": torch.arange(40)}, "optimizer": {}}
    save_folder(path, tensors, {"config": {"version": version}, "README.md": "# Text\n"}, max_shard_bytes=200)
    return path


def craft(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes a folder of any bytes under a manifest that agrees with them."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    entries = {name: {"sha256": sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    manifest = {"format": "emu-embodied-folder", "version": 1, "files": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def refused(file: Path, *arguments, **keywords) -> CheckpointError:
    """Loads the folder of `file` and returns the error, which must name that file and a remedy."""
    with pytest.raises(CheckpointError) as caught:
        load_folder(file.parent, *arguments, **keywords)
    assert caught.value.field == str(file) and caught.value.remedy
    return caught.value


def loaded_version(path: Path) -> int:
    """Loads what the saver wrote and returns its version; fails where two versions are mixed."""
    tensors, documents = load_folder(path)
    version = documents["config"]["version"]
    assert len(tensors["model"]) == 2 and all((tensor == version).all() for tensor in tensors["model"].values())
    return version


def litter(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


# Round trips


@st.composite
def tensor_entries(draw) -> dict[str, torch.Tensor]:
    entry = {}
    for name in draw(st.lists(st.text(max_size=8), unique=True, max_size=4)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=4))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        tensor = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
        entry[name] = tensor.transpose(0, -1) if draw(st.booleans()) and shape else tensor
    return entry


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(st.sampled_from(["model", "ema", "rng-1"]), tensor_entries(), max_size=2),
    document=st.dictionaries(st.text(), st.none() | st.integers() | st.floats(-1e300, 1e300)),
    shard=st.none() | st.integers(1, 500),
)
def test_round_trip(tmp_path, tensors, document, shard):
    save_folder(tmp_path / "any", tensors, {"config": document, "NOTE.txt": "ä\r\n"}, max_shard_bytes=shard)
    loaded, documents = load_folder(tmp_path / "any")
    assert documents == {"config": document}
    assert (tmp_path / "any" / "NOTE.txt").read_bytes() == "ä\r\n".encode()
    assert {name: set(entry) for name, entry in loaded.items()} == {name: set(entry) for name, entry in tensors.items()}
    for name, entry in tensors.items():
        for key, tensor in entry.items():
            assert loaded[name][key].dtype == tensor.dtype and loaded[name][key].shape == tensor.shape
            assert loaded[name][key].tolist() == tensor.tolist()
    assert litter(tmp_path) == []


def test_shards_and_wanted_entries(tmp_path):
    weights = {f"layer.{index}": torch.full((10,), index) for index in range(5)}
    save_folder(tmp_path / "x", {"model": weights, "optimizer": weights}, {}, max_shard_bytes=160)
    names = {path.name for path in (tmp_path / "x").glob("model*")}
    assert names == {f"model-0000{index}-of-00003.safetensors" for index in (1, 2, 3)}
    (tmp_path / "x" / "optimizer-00001-of-00003.safetensors").unlink()
    loaded, _ = load_folder(tmp_path / "x", tensors=["model"])
    assert loaded.keys() == {"model"} and all((loaded["model"][key] == weights[key]).all() for key in weights)
    assert load_folder(tmp_path / "x", tensors=[])[0] == {}
    refused(tmp_path / "x" / "optimizer-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="'ema'"):
        load_folder(tmp_path / "x", tensors=["model", "ema"])


def test_shared_viewed_and_learned_tensors_keep_their_values(tmp_path):
    base = torch.arange(6.0)
    weight = torch.nn.Parameter(base.view(2, 3).T)
    phases = torch.tensor([1 + 2j]).conj()
    entry = {"base": base, "tied": base, "part": base[2:4], "weight": weight, "phases": phases, "negated": phases.imag}
    save_folder(tmp_path / "x", {"model": entry}, {})
    loaded = load_folder(tmp_path / "x")[0]["model"]
    assert {key: tensor.tolist() for key, tensor in loaded.items()} == {key: t.tolist() for key, t in entry.items()}
    loaded["base"].add_(1)
    assert loaded["tied"][0] == 0 and not loaded["weight"].requires_grad


def test_a_folder_is_replaced_whole_also_through_a_link(tmp_path):
    small_folder(tmp_path / "step-1")
    (tmp_path / "last").symlink_to("step-1")
    save_folder(tmp_path / "last", {}, {"other": {"x": 1}})
    assert (tmp_path / "last").is_symlink() and load_folder(tmp_path / "step-1") == ({}, {"other": {"x": 1}})
    assert {path.name for path in (tmp_path / "step-1").iterdir()} == {"other.json", "manifest.json"}


# What cannot be saved


@pytest.mark.parametrize(
    ("tensors", "documents", "named"),
    [
        ({"model": {"w": torch.tensor([0.0, float("nan")])}}, {}, "'w'"),
        ({"model": {"w": torch.tensor([1j * float("inf")])}}, {}, "'w'"),
        ({"model": {"w": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}}, {}, "'w'"),
        ({"model": {"w": torch.ones(2, 2).to_sparse()}}, {}, "model"),
        ({"model": {"w": torch.ones(2, device="meta")}}, {}, "model"),
        ({"model": {"w": [1.0]}}, {}, "model"),
        ({"model": {3: torch.ones(1)}}, {}, "model"),
        ({"model": {"__metadata__": torch.ones(1)}}, {}, "__metadata__"),
        ({"model-00001-of-00002": {}}, {}, "model-00001-of-00002"),
        ({"../model": {}}, {}, "../model"),
        ({}, {"config": {"x": float("nan")}}, "config.json"),
        ({}, {"config": {"x": {1, 2}}}, "config.json"),
        ({}, {"config": {1: 0, "1": 0}}, "config.json"),
        ({}, {"config": [1]}, "config.json"),
        ({}, {"config": {}, "config.json": "{}"}, "config.json"),
        ({}, {"config.json": "[1]"}, "config.json"),
        ({}, {"x.safetensors": "text"}, "x.safetensors"),
        ({}, {"manifest": {}}, "manifest.json"),
        ({}, {"a/b": {}}, "a/b"),
        ({}, {"..": "text"}, ".."),
        ({}, {"": "text"}, "name"),
    ],
)
def test_what_cannot_be_read_back_is_not_saved(tmp_path, tensors, documents, named):
    small_folder(tmp_path / "x")
    with pytest.raises(CheckpointError) as caught:
        save_folder(tmp_path / "x", {"first": {"ok": torch.ones(1)}} | tensors, documents)
    assert named in str(caught.value)
    assert load_folder(tmp_path / "x")[1]["config"]["version"] == 1 and litter(tmp_path) == []


def test_other_peoples_folders_are_not_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    for path in (tmp_path / "home", tmp_path / "home" / "thesis.tex", tmp_path, Path("/")):
        with pytest.raises(CheckpointError):
            save_folder(path, {}, {})
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    save_folder(tmp_path / "empty", {}, {})
    assert load_folder(tmp_path / "empty") == ({}, {})


# Crashes and full disks


def test_killed_at_random_moments_leaves_a_complete_version(tmp_path, saver):
    chance, last = random.Random(0), 0
    save_folder(tmp_path / "last", {"model": dict.fromkeys("ab", torch.zeros(9))}, {"config": {"version": 0}})
    for _ in range(KILL_ROUNDS):
        pid = saver(last + 1)
        time.sleep(chance.uniform(0, 0.12))
        os.kill(pid, signal.SIGKILL)
        assert saver.exit_code() == -signal.SIGKILL
        version = loaded_version(tmp_path / "last")
        assert version >= last
        last = version
    assert last > 0
    small_folder(tmp_path / "last")
    assert litter(tmp_path) == []


def test_killed_at_every_file_system_call_leaves_a_complete_version(tmp_path, saver):
    seen, die_at, code = set(), 0, 9
    saver(1, 10**9)
    assert saver.exit_code() == 0
    while code == 9:
        before, die_at = loaded_version(tmp_path / "last"), die_at + 1
        saver(die_at + 1, die_at)
        code = saver.exit_code()
        after = loaded_version(tmp_path / "last")
        assert after in (before, die_at + 1)
        seen.add((after == before, (tmp_path / "last").exists(), (tmp_path / ".last.previous").exists()))
    assert die_at > 20 and litter(tmp_path) == []
    # still the old one, swapped out; swapped in, the old one not yet removed; done
    assert {(True, True, False), (True, False, True), (False, True, True), (False, True, False)} <= seen


def test_each_failing_call_leaves_the_old_version_and_no_litter(tmp_path, monkeypatch):
    small_folder(tmp_path / "x", 1)
    real = {name: getattr(os, name) for name in ("fsync", "rename")}
    for name, function in real.items():
        for failing in range(20):
            calls = []

            def fail(*arguments, calls=calls, failing=failing, function=function):
                calls.append(arguments)
                if len(calls) == failing + 1:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return function(*arguments)

            monkeypatch.setattr(os, name, fail)
            try:
                small_folder(tmp_path / "x", 2)
                break
            except CheckpointError as error:
                assert error.field == str(tmp_path / "x") and "No space left" in str(error) and "free" in error.remedy
            finally:
                monkeypatch.undo()
            assert load_folder(tmp_path / "x")[1]["config"]["version"] == 1 and litter(tmp_path) == []
        assert failing >= (2 if name == "rename" else 6) and litter(tmp_path) == []
        small_folder(tmp_path / "x", 1)


@pytest.mark.parametrize("limit", [0, 1, 100, 1000, 4096, 100_000, 399_000])
def test_a_real_full_disk_leaves_the_old_version(tmp_path, limit):
    small_folder(tmp_path / "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match="free space") as caught:
            save_folder(tmp_path / "x", {"model": {"w": torch.ones(100_000)}}, {"config": {"version": 2}})
        with pytest.raises(CheckpointError, match="free space"):
            write_json(tmp_path / "x.json", {"long": "x" * 400_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.field == str(tmp_path / "x")
    assert load_folder(tmp_path / "x")[1]["config"]["version"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for owner in (str(dead.pid), str(os.getpid()), str(os.getppid()), "notes", "9" * 30):
        (tmp_path / f".x.partial-{owner}").mkdir()
        (tmp_path / f".x.partial-{owner}" / "model.safetensors").write_text("half")
    small_folder(tmp_path / "x")
    assert set(litter(tmp_path)) == {f".x.partial-{os.getppid()}", ".x.partial-notes"}


# Damage


@pytest.mark.parametrize("damage", ["truncate", "flip", "extend", "remove"])
def test_damage_to_any_file_is_refused_and_named(tmp_path, damage):
    chance = random.Random(1)
    files = sorted(small_folder(tmp_path / "x").iterdir())
    assert len(files) == 6
    for file in files:
        intact = file.read_bytes()
        for _ in range(1 if damage == "remove" else DAMAGE_ROUNDS):
            data = bytearray(intact)
            place = chance.randrange(len(data))
            if damage == "flip":
                data[place] ^= 1 << chance.randrange(8)
            file.write_bytes(data[:place] if damage == "truncate" else data + bytes([place % 256]))
            if damage == "flip":
                file.write_bytes(data)
            if damage == "remove":
                file.unlink()
            if file.name == "manifest.json" and damage == "flip":  # may name a file that is not there
                with pytest.raises(CheckpointError, match=str(tmp_path / "x")):
                    load_folder(tmp_path / "x")
            else:
                refused(file)
        file.write_bytes(intact)
    assert load_folder(tmp_path / "x")[1]["config"]["version"] == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path / "none")):
        load_folder(tmp_path / "none")
    with pytest.raises(CheckpointError, match=str(tmp_path / "none.json")):
        read_json(tmp_path / "none.json")


# Hostile files


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/passwd", "a/b", "..", ".", "", "../../x.json", "a\\b", "C:\\x", "C:x", "./x", "x/", "..\\x"),
        *("~/x", "a..b", "x\0.json", "\uff0e\uff0e/x", "%2e%2e/x", "file:///etc/passwd", "x\n", ".hidden", "x" * 999),
    ],
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name, monkeypatch):
    folder = small_folder(tmp_path / "x")
    for outside in (tmp_path / "x.json", folder / "b"):
        outside.write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": sha256(b"{}").hexdigest(), "bytes": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = []
    monkeypatch.setattr(storage, "_read_verified", lambda *arguments: opened.append(arguments))
    refused(folder / "manifest.json")
    assert opened == []


def test_links_that_leave_the_folder_are_refused(tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    folder = craft(tmp_path / "x", {"config.json": b"{}", "kept.json": b"{}"})
    (folder / "config.json").unlink()
    for place in (tmp_path / "secret.json", Path("../secret.json"), tmp_path, "config.json", "/dev/zero", "nowhere"):
        (folder / "config.json").symlink_to(place)
        refused(folder / "config.json")
        (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder / "config.json")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("kept.json")
    assert load_folder(folder)[1] == {"config": {}, "kept": {}}


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


ONE = b'{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(pickle.dumps({"w": 1}), id="pickle"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 64, id="zeros"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="huge header"),
        pytest.param(header(b'{"w": ' + ONE + b', "w": ' + ONE + b"}", b"\0" * 4), id="duplicate key"),
        pytest.param(header(b'{"w": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}'), id="no data"),
        pytest.param(
            header(b'{"w": {"dtype": "F32", "shape": [0, 9223372036854775808], "data_offsets": [0, 0]}}'), id="huge"
        ),
        pytest.param(header(b'{"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}', b"\0"), id="dtype"),
        pytest.param(header(b"[" * 100_000), id="deep"),
        pytest.param(save_safetensors({"w": torch.tensor([1.0, float("nan")])}), id="nan"),
        pytest.param(save_safetensors({"w": torch.tensor([float("-inf")], dtype=torch.bfloat16)}), id="inf"),
    ],
)
def test_hostile_tensor_files_are_refused_and_named(tmp_path, data):
    refused(craft(tmp_path / "x", {"model.safetensors": data}) / "model.safetensors")


def test_pickles_do_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "boom"))
    torch.save({"w": Bomb()}, tmp_path / "bomb.pt")
    for index, data in enumerate([(tmp_path / "bomb.pt").read_bytes(), pickle.dumps(Bomb())]):
        for name in ("model.safetensors", "config.json"):
            refused(craft(tmp_path / f"{index}-{name}", {name: data}) / name)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "text",
    [
        *(b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 1}}', b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b"[]"),
        *(b"", b"{", b'"\xff"', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b"{} {}"),
    ],
)
def test_hostile_json_is_refused_and_named(tmp_path, text):
    refused(craft(tmp_path / "x", {"config.json": text}) / "config.json")
    if text != b"[]":
        with pytest.raises(CheckpointError, match="config.json"):
            read_json(tmp_path / "x" / "config.json")
        (tmp_path / "x" / "manifest.json").write_bytes(text)
        refused(tmp_path / "x" / "manifest.json")


def test_oversized_documents_are_refused_before_they_are_read(tmp_path):
    folder, size = craft(tmp_path / "x", {"config.json": b"{}", "README.md": b"text"}), 1 << 40
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("README.md", "config.json"):
        with (folder / name).open("r+b") as file:
            file.truncate(size)  # takes no space on the disk, and would take all memory
        manifest["files"][name]["bytes"] = size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder / "config.json")
    with pytest.raises(CheckpointError, match="config.json"):
        read_json(folder / "config.json")
    with pytest.raises(CheckpointError, match="big.json"):
        save_folder(tmp_path / "y", {}, {"big": {"text": "x" * storage.MAX_JSON_BYTES}})


@pytest.mark.parametrize("text", [b'{"a": [' + b"[]," * 1_000_000 + b"[]]}", b'{"a": ' + b"[" * 2_000_000])
def test_json_of_too_many_values_is_refused_before_it_is_parsed(tmp_path, text):
    begun = time.process_time()
    assert "values are not read" in str(refused(craft(tmp_path / "x", {"config.json": text}) / "config.json"))
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "entries",
    [
        {f"e{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)},
        {"e": {"dtype": "F32", "shape": [0] + [1] * 100_000, "data_offsets": [0, 0]}},
        {"e": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 4]}},
        {"e": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"e": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"e": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"e": 5},
    ],
)
def test_headers_that_do_not_fit_their_file_are_refused(tmp_path, entries):
    data = header(json.dumps(entries).encode(), b"\0" * 4)
    refused(craft(tmp_path / "x", {"model.safetensors": data}) / "model.safetensors")


def test_tensors_are_compared_with_what_is_expected_before_they_are_read(tmp_path):
    folder = storage.Folder(small_folder(tmp_path / "x"))
    like = {"a": torch.empty(40, device="meta"), "b": torch.empty(40, dtype=torch.int64, device="meta")}
    assert folder.tensors("model", like).keys() == {"a", "b"}
    assert folder.tensors("model", like | {"a": like["a"].half()}, [torch.float32])["a"].dtype == torch.float32
    for name in (tmp_path / "x").glob("model*"):  # what they say they hold stays; the rest would not pass
        name.write_bytes(name.read_bytes()[:-8] + bytes(8))
    for wrong in ({"a": like["a"]}, like | {"c": like["a"]}, like | {"a": like["b"]}, like | {"a": like["a"][:39]}):
        with pytest.raises(CheckpointError, match="its configuration"):
            folder.tensors("model", wrong)
    with pytest.raises(CheckpointError, match="match manifest.json"):
        folder.tensors("model", like)


def test_two_versions_of_a_folder_do_not_mix(tmp_path):
    folder = storage.Folder(small_folder(tmp_path / "x"))
    small_folder(tmp_path / "x", version=2)
    with pytest.raises(CheckpointError, match="match manifest.json"):
        folder.tensors("model")


@pytest.mark.parametrize(
    "change",
    [
        *({"format": "other"}, {"format": None}, {"version": 2}, {"version": "1"}, {"files": []}, {"files": None}),
        *({"files": {"a.json": None}}, {"files": {"a.json": {}}}, {"files": {"a.json": {"sha256": 1, "bytes": 1}}}),
        {"files": {"a.json": {"sha256": "", "bytes": True}}},
    ],
)
def test_other_manifests_are_refused(tmp_path, change):
    folder = craft(tmp_path / "x", {})
    manifest = json.loads((folder / "manifest.json").read_text()) | change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(folder / "manifest.json")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = [f"model-0000{index}-of-00002.safetensors" for index in (1, 2)]
    folder = craft(tmp_path / "x", {name: save_safetensors({"w": torch.ones(1)}) for name in shards})
    refused(folder / shards[1])


# Single JSON files and random states


def test_json_files_are_replaced_whole(tmp_path):
    path = tmp_path / "new" / "state.json"
    write_json(path, {"ä": [1, 2.5, None]})
    assert read_json(path) == {"ä": [1, 2.5, None]}
    for value in (float("nan"), {"x": object()}, {1: 0, "1": 0}):
        with pytest.raises(CheckpointError, match=str(path)):
            write_json(path, value)
    assert read_json(path) == {"ä": [1, 2.5, None]} and litter(path.parent) == []


def test_a_snapshot_of_the_hubs_cache_is_read(tmp_path):
    save_folder(tmp_path / "x", {"model": {"w": torch.ones(3)}}, {"config": {"a": 1}})
    root = snapshot(tmp_path / "x", tmp_path / "models--me--x")
    assert load_folder(root)[1] == {"config": {"a": 1}} and load_file(root, "config.json")
    (tmp_path / "shortcut").symlink_to(root)
    assert load_folder(tmp_path / "shortcut")[0]["model"]["w"].sum() == 3
    save_folder(root / "part", {}, {"config": {"a": 2}})  # a folder inside a snapshot
    assert load_folder(root / "part")[1] == {"config": {"a": 2}}


@pytest.mark.parametrize(
    "leads", ["../../../models--me--y/blobs/0", "../../config.json", "../../blobs", "/dev/zero", ""]
)
def test_links_of_a_snapshot_stay_in_its_cache(tmp_path, leads: str):
    save_folder(tmp_path / "x", {}, {"config": {"a": 1}})
    root, other = snapshot(tmp_path / "x", tmp_path / "models--me--x"), tmp_path / "models--me--y" / "blobs" / "0"
    other.parent.mkdir(parents=True)
    for place in (other, tmp_path / "models--me--x" / "config.json"):
        shutil.copy(tmp_path / "x" / "config.json", place)
    (root / "config.json").unlink()
    (root / "config.json").symlink_to(leads) if leads else os.mkfifo(root / "config.json")
    with pytest.raises(CheckpointError, match="config.json: leads to .*; only regular files"):
        load_folder(root)


def test_clearing_away_does_not_hide_why(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(CheckpointError, match="not written"):
            save_folder(target, {}, {"config": {}})


@pytest.mark.parametrize(
    "text", ["[" * 900 + "]" * 900, '{"a":' * 90 + "1" + "}" * 90, "1" + "0" * 400, "[-1" + "0" * 320 + "]"]
)
def test_json_that_nobody_can_walk_or_count_with_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match="x.json"):
        read_json(tmp_path / "x.json")


def test_a_file_replaces_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(CheckpointError, match="a folder, a device or a pipe; name a file"):
            write_bytes(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo() and sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]
    (tmp_path / "other").symlink_to("file")
    write_bytes(tmp_path / "other", b"x")  # a user's link to a file is followed
    assert (tmp_path / "file").read_bytes() == b"x" and (tmp_path / "other").is_symlink()
