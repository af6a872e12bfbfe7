"""Style as a test: the sizes, the layers and the bans of docs/architecture.md.

When a rule fails, mend the code, not the rule.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray
from zray.base.schema import Schema
from zray.base.wire import SCHEMA

ROOT = Path(__file__).resolve().parents[1]
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# Each layer may import those before it. Groups of one level may not import each other; the members of a group may.
LEVELS: list[list[set[str]]] = [
    [{"exceptions"}],
    [{"base"}],
    [{"core"}, {"io"}, {"object_ref"}],
    [{"runtime"}],
    [
        {
            "api",
            "actor",
            "actor_description",
            "arguments",
            "object_ref_generator",
            "progress",
            "options",
            "placement_group",
            "remote_function",
            "runtime_context",
            "state",
            "strategy",
            "timeline",
        }
    ],
    [{"util"}, {"ops"}, {"experimental"}, {"cluster_utils"}],
]
CORE_BANS = {"zmq", "sqlite3", "threading", "asyncio", "os", "time", "random", "logging", "subprocess"}
ONLY_IN = {
    "zmq": {"zray.io.loop", "zray.io.transport", "zray.io.handshake", "zray.io.transfer"},
    "sqlite3": {"zray.io.db"},
    "multiprocessing.shared_memory": {"zray.io.storage"},
    "cloudpickle": {"zray.base.serialization"},
}
UTIL_MAY_IMPORT = set().union(*LEVELS[4], {"exceptions", "object_ref", "util"})
MAY_PRINT = {"zray.util.inspection"}  # and zray.ops
BANNED_NAMES = {"utils", "helpers", "common"}


def python_files() -> list[Path]:
    """Every Python file of the project, those of scripts/ without a suffix included."""
    found = [path for folder in ("zray", "tests", "scripts", "docs") for path in (ROOT / folder).rglob("*.py")]
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix]
    return sorted(found + [path for path in scripts if "python" in path.read_text().split("\n", 1)[0]])


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text()) for path in python_files()}
ZRAY = {name_of(path): tree for path, tree in TREES.items() if path.is_relative_to(ROOT / "zray")}
EVERY_FILE = pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(ROOT)))
EVERY_MODULE = pytest.mark.parametrize("module", sorted(ZRAY))


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Everything a module imports, anywhere in it: ``(full name, line)``."""
    for node in ast.walk(ZRAY[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: import by full name"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def calls_in(module: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ZRAY[module]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


# -- sizes and names --------------------------------------------------------------------------------------------------


@EVERY_FILE
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX
    assert ast.get_docstring(TREES[path]), "it needs a docstring that says what it is for"
    assert path.stem not in BANNED_NAMES, "name a module after the one thing in it"


@EVERY_FILE
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"line {node.lineno}: {node.name}() has {lines} lines"


# -- layers -----------------------------------------------------------------------------------------------------------


def place_of(module: str) -> tuple[int, int]:
    """Level and group of a module."""
    part = module.split(".")[1]
    for level, groups in enumerate(LEVELS):
        for number, group in enumerate(groups):
            if part in group:
                return level, number
    raise AssertionError(f"{module} belongs to no layer: give it a place in LEVELS, and in docs/architecture.md")


@EVERY_MODULE
def test_modules_import_only_layers_below(module: str) -> None:
    if module == "zray":
        return  # it names everything, and loads it late
    level, group = place_of(module)
    for imported, line in imports_of(module):
        if imported == "zray" or not imported.startswith("zray."):
            continue
        other_level, other_group = place_of(imported) if imported != "zray.__version__" else (0, 0)
        below = other_level < level or (other_level, other_group) == (level, group)
        assert below, f"{module}:{line} imports {imported}, which is not below it"


@EVERY_MODULE
def test_what_only_some_modules_may_import(module: str) -> None:
    for imported, line in imports_of(module):
        for package, users in ONLY_IN.items():
            assert not within(imported, package) or module in users, f"{module}:{line}: {package} is only for {users}"
        if within(module, "zray.core"):
            assert imported.split(".")[0] not in CORE_BANS, f"{module}:{line}: machines do not touch {imported}"
        if within(module, "zray.util") and imported.startswith("zray.") and not within(imported, "zray.base.serialization"):
            assert imported.split(".")[1] in UTIL_MAY_IMPORT, f"{module}:{line}: utilities use the public API only"


# -- bans -------------------------------------------------------------------------------------------------------------


def names_of_handler(handler: ast.ExceptHandler) -> list[str]:
    kind = handler.type
    return [ast.unparse(k) for k in kind.elts] if isinstance(kind, ast.Tuple) else [ast.unparse(kind)] if kind else []


@EVERY_MODULE
def test_no_exception_is_swallowed_unseen(module: str) -> None:
    for node in ast.walk(ZRAY[module]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}:{node.lineno}: a bare except"
            everything = {"Exception", "BaseException"} & set(names_of_handler(node))
            nothing = all(isinstance(line, (ast.Pass, ast.Continue)) for line in node.body)
            assert not (everything and nothing), f"{module}:{node.lineno}: an error of any kind would disappear"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("suppress", "contextlib.suppress"):
            suppressed = {ast.unparse(argument) for argument in node.args}
            assert not suppressed & {"Exception", "BaseException"}, f"{module}:{node.lineno}: likewise"


@EVERY_MODULE
def test_nothing_sleeps_and_nothing_prints(module: str) -> None:
    for called, line in calls_in(module):
        assert called not in ("time.sleep", "sleep"), f"{module}:{line}: wait for the event instead"
        if not within(module, "zray.ops") and module not in MAY_PRINT:
            assert called != "print", f"{module}:{line}: return it, raise it or log it"


# -- what importing does ----------------------------------------------------------------------------------------------


def in_fresh_python(program: str) -> Any:
    """The last line a program prints, read as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(answer.stdout.splitlines()[-1])


def test_import_zray_loads_nothing() -> None:
    heavy = ["zmq", "cloudpickle", "psutil", "sqlite3", "asyncio", "numpy", "zray.api"]
    program = f"import json, sys, zray; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    assert in_fresh_python(program) == []


def test_importing_every_module_starts_nothing() -> None:
    program = f"""
import importlib, json, os, signal, tempfile, threading
def look():
    children = open(f"/proc/self/task/{{os.getpid()}}/children").read().split()
    session = os.path.exists(os.path.join(tempfile.gettempdir(), f"zray-{{os.getuid()}}"))
    handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return [threading.active_count(), len(os.listdir("/proc/self/fd")), children, session, handler, os.getcwd()]
import zmq, psutil  # their own doings are not ours
before = look()
for name in {sorted(ZRAY)}:
    importlib.import_module(name)
print(json.dumps([before, look()]))
"""
    before, after = in_fresh_python(program)
    assert after == before


# -- messages ---------------------------------------------------------------------------------------------------------


def handlers() -> dict[str, list[type]]:
    """The classes that handle messages, by the receiver's role."""
    from zray.core.actor_desk import ActorDesk
    from zray.core.actor_owner import ActorOwner
    from zray.core.actors import ActorManager
    from zray.core.agent import NodeAgent
    from zray.core.bundles import NodeBundles
    from zray.core.cancellation import TaskCancellation
    from zray.core.copy_search import CopySearch
    from zray.core.gcs import Gcs
    from zray.core.generators import GeneratorOwner
    from zray.core.object_desk import ObjectDesk
    from zray.core.output import OutputDesk
    from zray.core.owner import Owner
    from zray.core.placement import PlacementGroupManager
    from zray.core.recovery import ObjectRecovery
    from zray.core.resync import Resync
    from zray.core.transfer import ObjectTransfer
    from zray.runtime.client import Client
    from zray.runtime.core_worker import CoreWorker
    from zray.runtime.executor import Executor
    from zray.runtime.explainer import Explainer
    from zray.runtime.output import DriverOutput
    from zray.runtime.worker import TaskExecutor

    return {
        "control": [Gcs, ActorManager, PlacementGroupManager],
        "agent": [NodeBundles, NodeAgent, ActorDesk, ObjectDesk, ObjectTransfer, CopySearch, OutputDesk],
        "owner": [
            Owner,
            ActorOwner,
            GeneratorOwner,
            ObjectRecovery,
            Resync,
            TaskCancellation,
            CoreWorker,
            Explainer,
            DriverOutput,
        ],
        "worker": [Executor, TaskExecutor],
        "any": [Client, CoreWorker],
    }


@pytest.mark.parametrize("schema", SCHEMA.values(), ids=lambda schema: schema.name)
def test_each_message_has_exactly_one_handler(schema: Schema) -> None:
    found = [cls for cls in handlers()[schema.receiver] if schema.handler in vars(cls)]
    if schema.name == "Hello":  # only the first message of a connection may be one, and that is read by the transport
        assert not any(hasattr(cls, schema.handler) for classes in handlers().values() for cls in classes)
        return
    assert len(found) == 1, f"{schema.name} is handled by {found}"
    parameters = [name.lstrip("_") for name in inspect.signature(getattr(found[0], schema.handler)).parameters]
    assert parameters == ["self", "now", "peer", *schema.cls._fields]  # type: ignore[attr-defined]


def test_no_two_effects_have_the_same_verb() -> None:
    from zray.core import effects

    verbs = {name: value for name, value in vars(effects).items() if isinstance(value, int) and name.isupper()}
    assert len(set(verbs.values())) == len(verbs) > 20


# -- public names -----------------------------------------------------------------------------------------------------


def test_every_public_name_can_be_loaded() -> None:
    for name in zray.__all__:
        assert getattr(zray, name) is not None
    for info in pkgutil.walk_packages(zray.__path__, "zray."):
        importlib.import_module(info.name)


def test_effects_have_numbers_of_their_own() -> None:
    from zray.core import effects

    numbers = [value for name, value in vars(effects).items() if name.isupper()]
    assert sorted(set(numbers)) == sorted(numbers)


# -- what public docstrings say ---------------------------------------------------------------------------------------

PUBLIC_MODULES = ["zray", "zray.actor", "zray.cluster_utils", "zray.util"] + [
    f"zray.util.{name}"
    for name in ("joblib", "multiprocessing", "placement_group", "progress", "queue", "scheduling_strategies", "state")
]


def public_names(module: str) -> Iterator[tuple[str, Any]]:
    """The functions and classes of zray's own that a module offers: those of ``__all__``, or those that it defines."""
    values = importlib.import_module(module)
    for name in getattr(values, "__all__", [name for name in vars(values) if not name.startswith("_")]):
        value = getattr(values, name)
        own = str(getattr(value, "__module__", "")).startswith("zray") and (
            hasattr(values, "__all__") or value.__module__ == module
        )
        if own and (inspect.isfunction(value) or inspect.isclass(value)):
            yield name, value


def documented() -> dict[str, Any]:
    """Every public function, and every public method and property of a public class, those it inherits in zray included."""
    found: dict[str, Any] = {}
    for module in PUBLIC_MODULES:
        for name, value in public_names(module):
            if inspect.isfunction(value):
                found[f"{value.__module__}.{name}"] = value
                continue
            for cls in value.__mro__:
                for method, member in vars(cls).items():
                    function = getattr(member, "__func__", member)  # of a classmethod or a staticmethod
                    known = inspect.isfunction(function) or isinstance(function, property)
                    if known and cls.__module__.startswith("zray") and not method.startswith("_"):
                        found[f"{cls.__module__}.{cls.__qualname__}.{method}"] = function
    return found


DOCUMENTED = documented()
# Exceptions: what begins with an underscore is not for users. What has no parameters says what it returns in its first
# sentence, as properties do. What is "Not supported" has the parameters of Python's generators, and uses none.


def names_in_args(text: str) -> set[str]:
    """The names before the colons in the section Args."""
    section = re.search(r"^Args:\n((?:    .*\n?)+)", text, re.MULTILINE)
    lines = re.findall(r"^    ([\w, ]+):", section[1], re.MULTILINE) if section else []
    return {name for line in lines for name in line.split(", ")}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_docstrings_say_what_goes_in_and_what_comes_out(name: str) -> None:
    member = DOCUMENTED[name]
    text = inspect.cleandoc(member.__doc__ or "")
    assert text, "it has no docstring"
    if isinstance(member, property) or text.startswith("Not supported"):
        return
    signature = inspect.signature(member)
    expected = {p for p in signature.parameters if not p.startswith("_") and p not in ("self", "cls")}
    missing = expected - names_in_args(text) - set(re.findall(r"``(\w+)``", text))
    assert not missing, f"its Args do not name {sorted(missing)}"
    assert names_in_args(text) <= set(signature.parameters), "its Args name what it does not take"
    if expected and signature.return_annotation not in ("None", "NoReturn"):
        assert "\nReturns:\n" in text, "it does not say what it returns"
    if "." not in member.__qualname__:  # a function
        assert "\nExample:\n" in text, "it has no example"
