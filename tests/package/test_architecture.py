"""Who may import whom, read from the source of the whole tree; plus what no module may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest
from source_tree import OUTER, ROOT, modules

BASICS = ("types", "errors", "validation")
# Room -> the rooms it may import, besides itself and what lies in it; the longest name that fits a module rules.
ALLOWED = {
    "types": (),
    "errors": (),
    "validation": ("errors",),
    "framing": (),
    "units": ("errors", "protocols", "types"),
    "labels": ("errors", "protocols"),
    "protocols": ("types",),
    "storage": ("errors", "validation"),
    "tokenizers": (*BASICS, "storage"),
    "model": (*BASICS, "tokenizers"),
    "model.noise": ("validation",),
    "inference": (*BASICS, "model"),
    "inference.decoding": (*BASICS, "model.noise", "protocols"),
    "inference.engines": (*BASICS, "model", "inference", "protocols", "storage"),
    "generation": (*BASICS, "model", "inference.decoding", "inference.ragged_kv_cache"),
    "generation.key_frames": (
        *(*BASICS, "inference.decoding", "inference.ragged_kv_cache", "model.noise", "protocols", "tokenizers.text"),
        "world_model",
    ),
    "world_model": (*BASICS, "tokenizers", "model", "inference", "protocols", "labels"),
    "policies": (*BASICS, "protocols", "labels", "framing"),
    "policies.lerobot_plugin": (*BASICS, "protocols", "units", "policies", "envs", "rollouts", "framing"),
    "envs": (*BASICS, "protocols", "labels", "process", "units", "framing"),
    "rollouts": (
        *(*BASICS, "protocols", "metrics", "envs", "policies", "labels", "units", "data", "framing", "storage"),
    ),
    "rollouts.agents": (
        *(*BASICS, "protocols", "envs", "policies", "units", "storage", "rollouts.goals", "rollouts.vector_envs"),
    ),
}
# Rooms that never meet.
APART = (("rollouts.viewer", "rollouts.evaluation"),)
# The doors by which a name becomes a model: they alone import `loading`, inside functions.
DOORS = ("commands", "envs.registration", "policies.lerobot_plugin", "")
# Heavy libraries -> the modules that may import them outside functions.
HEAVY = {
    "mujoco": ("envs.rendering",),
    "gym_pusht": ("envs.pusht",),
    "pymunk": (),
    "gymnasium_robotics": (),
    "gym_aloha": (),
    "dm_control": (),
    "metaworld": (),
    "lerobot": ("policies.lerobot_plugin",),
    "stable_worldmodel": (),
    "tensorrt": (),
    "tensorrt_rtx_bindings": (),
    "onnx": (),
    "onnxscript": (),
    "onnxruntime": (),
}
BARRED = (
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "torch.load",
)


def within(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def imports(tree: ast.AST, package: str, lazy: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Every (dotted name, whether inside a function, line) that a module of `package` imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value), lazy, node.lineno
        yield from imports(node, package, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def import_faults(source: str, module: str, package: str) -> Iterator[str]:
    """What is wrong with the imports of `module`, a dotted name inside emu_embodied ("" is emu_embodied itself)."""
    room = module.partition(".")[0]
    for name, lazy, line in imports(ast.parse(source), package):
        target = name.removeprefix("emu_embodied.") if name.startswith("emu_embodied.") else ""
        other = target.partition(".")[0]
        where = f"{module or '__init__'}:{line} imports {name}"
        ruled = max((rule for rule in ALLOWED if within(module, rule)), key=len, default=None)
        if other and ruled and not within(target, *ALLOWED[ruled], ruled, "loading", "load", "__version__"):
            yield f"{where}: {ruled} may import only {sorted(ALLOWED[ruled])}"
        for one, another in (*APART, *(pair[::-1] for pair in APART)):
            if within(module, one) and within(target, another):
                yield f"{where}: {one} and {another} never import each other"
        if other in OUTER[:3] and room not in (*OUTER, "commands"):
            yield f"{where}: the core never imports {other}"
        if other in ("loading", "load"):
            if not (room == "loading" or any(within(module, door) if door else module == "" for door in DOORS)):
                yield f"{where}: only {DOORS} may"
            elif not lazy and room not in ("loading", "commands"):
                yield f"{where}: only inside a function"
        for library, homes in HEAVY.items():
            if within(name, library) and not lazy and not within(module, *homes):
                yield f"{where}: only inside a function"
        if room == "training" and within(name, *HEAVY):
            yield f"{where}: training runs without it"


def common_faults(source: str, trusted: bool = False) -> Iterator[str]:
    """What no file may do, by line; `trusted` (tests) may pickle and may read files that it made itself."""
    tree = ast.parse(source)
    for name, _, line in imports(tree, ""):
        if within(name, *OUTER):
            yield f"{line} imports {name}: write emu_embodied.{name}, or there are two copies of each class"
        if within(name, *BARRED) and not trusted:
            yield f"{line} imports {name}: it can run what a file says"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or trusted:
            continue
        call = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if call in ("eval", "exec", "builtins.eval", "builtins.exec") or call.endswith("hydra.utils.instantiate"):
            yield f"{node.lineno} calls {call}"
        if call == "torch.load" and options.get("weights_only") != "True":
            yield f"{node.lineno} calls torch.load without weights_only=True"
        if options.get("allow_pickle", "False") != "False" or options.get("trust_remote_code", "False") != "False":
            yield f"{node.lineno} lets {call} run what a file says"


def test_each_room_imports_only_what_the_design_allows():
    found = list(modules())
    assert len(found) > 10
    faults = [fault for path, module, package in found for fault in import_faults(path.read_text(), module, package)]
    assert not faults, "\n".join(faults)


def test_no_file_runs_what_a_file_says_and_none_imports_a_bare_folder():
    trees = [(top, top == "tests") for top in ("emu_embodied", *OUTER, "benchmarks", "tests")]
    files = [(path, trusted) for top, trusted in trees for path in sorted((ROOT / top).rglob("*.py"))]
    faults = [f"{path.relative_to(ROOT)}:{fault}" for path, t in files for fault in common_faults(path.read_text(), t)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("protocols", "from emu_embodied import errors"),
        ("protocols", "def f():\n    from .errors import InputError"),
        ("inference.decoding.dida", "from emu_embodied.tokenizers.frames import FrameTokenizer"),
        ("inference.engines.eager", "import emu_embodied.world_model"),
        ("world_model", "from emu_embodied.training import loop"),
        ("rollouts.viewer.session", "from emu_embodied.rollouts.evaluation.journal import Journal"),
        ("rollouts.agents.mpc", "from emu_embodied.rollouts.viewer.episode_record import save_record"),
        ("rollouts.evaluation.planning", "def f():\n    from emu_embodied.rollouts.viewer import figures"),
        ("policies.planners.cem", "from emu_embodied.world_model import TokenWorldModel"),
        ("envs.imagined.env", "def f():\n    from emu_embodied.loading import load"),
        ("envs.registration", "from emu_embodied.loading import load"),
        ("rollouts.collection.collect", "from emu_embodied import load"),
        ("data.lerobot", "import lerobot"),
        ("data.mixing", "def f():\n    import emu_embodied.envs.tabletop.tasks"),
        ("training.loop", "def f():\n    import mujoco"),
        ("training.loop", "def f():\n    from emu_embodied.envs.tabletop import tasks"),
        ("envs.tabletop.tasks", "import mujoco"),
        ("policies.planners.cem", "import lerobot"),
        ("policies.planners.cem", "from emu_embodied.rollouts.goals.task_costs import task_cost"),
        ("policies.lerobot_plugin.pilot", "from emu_embodied.world_model import TokenWorldModel"),
        ("policies.lerobot_plugin.modeling_emu_mpc", "from emu_embodied.loading import load"),
        ("inference.engines.trt", "if True:\n    import tensorrt as trt"),
        ("inference.engines.trt", "importlib.import_module('onnx')"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str):
    assert list(import_faults(source, module, ".".join(["emu_embodied", *module.split(".")[:-1]])))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("envs.registration", "def f():\n    from emu_embodied.loading import load"),
        ("envs.rendering", "import mujoco\nfrom emu_embodied.envs.tabletop.tasks import Task"),
        ("data.lerobot", "def f():\n    from lerobot.datasets import LeRobotDataset"),
        ("policies.lerobot_plugin.x", "import lerobot\ndef f():\n    from emu_embodied.loading import load"),
        ("policies.lerobot_plugin.x", "def f():\n    from emu_embodied.rollouts.goals.task_costs import task_cost"),
        ("commands.plan", "from emu_embodied.rollouts import score\nfrom emu_embodied.loading import load"),
        ("inference.decoding.dida", "from emu_embodied.model.noise import Noise\nfrom ...types import FrameTokens"),
    ],
)
def test_an_allowed_import_is_not_a_fault(module: str, source: str):
    assert not list(import_faults(source, module, ".".join(["emu_embodied", *module.split(".")[:-1]])))


@pytest.mark.parametrize(
    "source",
    [
        "from envs import tabletop",
        "import pickle",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from hydra.utils import instantiate",
        "hydra.utils.instantiate(config)",
        "eval('1')",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_a_forbidden_deed_is_found(source: str):
    assert list(common_faults(source))
    assert not list(common_faults("model.eval(); torch.load(path, weights_only=True)"))


def test_importing_the_package_and_its_dispatcher_is_quick():
    code = "import sys, emu_embodied, emu_embodied.commands; print({'torch', 'lerobot', 'mujoco'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
