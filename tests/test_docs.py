"""The documents are true: what is made from the code is fresh, what is listed exists, links lead somewhere."""

from __future__ import annotations

import ast
import configparser
import os
import re
import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import zray
from zray.base.wire import SCHEMA
from zray.core.workers import WORKER_LIFECYCLE
from zray.io import db
from zray.ops import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
ARCHITECTURE = (DOCS / "architecture.md").read_text()
MADE = runpy.run_path(str(ROOT / "scripts/docs"), run_name="docs")["documents"]()
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_documents_made_from_the_code_are_fresh(path: Path) -> None:
    assert path.exists() and path.read_text() == MADE[path], "run scripts/docs"


def test_no_drawing_is_left_of_a_lifecycle_that_is_gone() -> None:
    assert {path for path in MADE if path.parent.name == "states"} == set((DOCS / "states").glob("*.md"))


def test_the_made_documents_have_what_they_are_made_of() -> None:
    protocol = MADE[DOCS / "protocol.md"]
    assert all(f"| {schema.op} | **{schema.name}**" in protocol for schema in SCHEMA.values())
    assert all(sentence in MADE[DOCS / "states/worker.md"] for sentence in WORKER_LIFECYCLE.sentences.values())
    assert "`ZRAY_LEASE_IDLE_MS`" in MADE[DOCS / "limits.md"]


def test_architecture_lists_every_module_and_no_other() -> None:
    listed = re.findall(r"^- `(zray/[\w/]+\.py)`: \S.+", ARCHITECTURE, re.MULTILINE)
    assert len(listed) == len(set(listed)), "a module is listed twice"
    # A package that says nothing but its docstring has its sentence in the heading of its section.
    existing = {str(path.relative_to(ROOT)) for path in (ROOT / "zray").rglob("*.py") if path.name != "__init__.py"}
    assert set(listed) - {"zray/__init__.py"} == existing


def test_architecture_names_hot_functions_that_exist() -> None:
    section = ARCHITECTURE.split("## The hot functions")[1].split("\n## ")[0]
    named = re.findall(r"^- `(\w+)\.([\w, ]+)`", section, re.MULTILINE)
    assert named
    methods: dict[str, set[str]] = {}
    for path in (ROOT / "zray").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                functions = {f.name for f in node.body if isinstance(f, ast.FunctionDef)}
                methods.setdefault(node.name, set()).update(functions)
    for cls, functions in named:
        missing = {name.strip() for name in functions.split(",")} - methods[cls]
        assert not missing, f"{cls} has no {missing}"


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@EVERY_PAGE
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:zray|docs|scripts|tests)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_decisions_have_their_three_parts() -> None:
    records = sorted((DOCS / "adr").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        headings = re.findall(r"^## (.+)$", record.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], record.name
        assert f"adr/{record.name}" in ARCHITECTURE, f"docs/architecture.md does not name {record.name}"


def test_the_questions_to_the_database_can_be_asked() -> None:
    text = (DOCS / "gcs.md").read_text()
    questions = [block for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL) if "SELECT" in block]
    questions += re.findall(r'"(SELECT [^"]+)"', text)
    assert len(questions) >= 2
    connection = sqlite3.connect(":memory:")
    try:
        db.migrate(connection)
        for question in questions:
            connection.executescript(question)
    finally:
        connection.close()


def test_what_is_said_to_be_there_or_missing_is() -> None:
    """docs/migrating.md has two lists of names: those that work, and those that are not there yet."""
    works, missing = (DOCS / "migrating.md").read_text().split("## Not there yet")
    for name in re.findall(r"`ray\.(\w+)", works):
        assert hasattr(zray, name), f"zray has no {name}"
    for name in re.findall(r"^- `ray\.(\w+)\(\.\.\.\)`", missing, re.MULTILINE):
        assert not hasattr(zray, name), f"zray has {name} now: docs/migrating.md should say so"


def commands() -> list[tuple[str, str, str]]:
    """What the documents say of the console commands: page, command and the rest of the line, continued lines included."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for name, rest in re.findall(r"\b(zray-head|zray-node)\b((?: [^\n`;&|#]*)?)", text):
            found.append((page.name, name, rest))
    return found


def test_options_of_the_commands_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = {}
    for name, command in (("zray-head", cli.head), ("zray-node", cli.node)):
        with pytest.raises(SystemExit):
            command(["--help"])
        known[name] = set(re.findall(r"(--[a-z-]+)", capsys.readouterr().out))
    used = {(name, option) for _, name, rest in commands() for option in re.findall(r"(--[a-z-]+)", rest)}
    assert {option for _, option in used} >= {"--host", "--port", "--address", "--key-file", "--detach", "--session-dir"}
    assert not [(name, option) for name, option in used if option not in known[name]]


def test_shell_blocks_are_shell() -> None:
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{page.name}: {checked.stderr}"


def test_units_of_systemd_start_commands_that_exist() -> None:
    blocks = re.findall(r"```ini\n(.*?)```", (DOCS / "deploy.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block, name in zip(blocks, ("zray-head", "zray-node"), strict=True):
        unit = configparser.ConfigParser()
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(block)
        command = unit["Service"]["ExecStart"].split()
        assert command[0].endswith(f"/{name}") and command[command.index("--session-dir") + 1] == "/run/zray"
        assert {"User", "KillMode", "Restart"} <= set(unit["Service"])


def test_python_blocks_are_python() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(block, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def run(program: str) -> str:
    """Run a program as a user would; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def blocks_of_the_readme() -> list[str]:
    return re.findall(r"```python\n(import zray as ray\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_five_lines_of_the_readme_work() -> None:
    block = blocks_of_the_readme()[0]
    expected = re.search(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
    assert expected is not None
    assert run(block).strip() == expected[1]


def test_the_page_of_api_works() -> None:
    page = blocks_of_the_readme()[1]
    checks = """
assert ray.get([total, tree.remote(3), big]) == [4, 8, bytes(100_000_000)]
assert asyncio.run(main()) == 3
"""
    run("import asyncio\n" + page + checks)
