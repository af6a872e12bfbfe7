"""scripts/onefile: zray as one file, run by Pythons that have pyzmq, and by one that has nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import os, sys
import beside
import zray as ray

@ray.remote
def where(number):
    import zray
    return zray.__file__, os.getpid(), beside.VALUE + number

if __name__ == "__main__":
    path, pid, number = ray.get(where.remote(2))
    assert path == ray.__file__, (path, ray.__file__)
    print(os.path.dirname(os.path.dirname(path)), pid != os.getpid(), number, *sys.argv[1:])
"""


def build(folder: Path, *options: str) -> Path:
    archive = folder / "zray.pyz"
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "onefile"), "--output", str(archive), *options], check=True, capture_output=True
    )
    return archive


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("onefile")
    (path / "program.py").write_text(PROGRAM)
    (path / "beside.py").write_text("VALUE = 40\n")
    return path


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    return build(folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: Any) -> str:
    """A Python without any packages."""
    path = tmp_path_factory.mktemp("bare")
    venv.create(path, with_pip=False)
    return str(path / "bin" / "python")


def run(python: str, archive: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of ``folder`` from elsewhere, in an environment that knows nothing of this directory."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "ZRAY_TMPDIR") if name in os.environ}
    command = [python, "-I", str(archive), *arguments]
    variables = {**kept, **environment}
    return subprocess.run(command, env=variables, cwd=folder.parent, capture_output=True, text=True, timeout=60, check=False)


def test_a_script_runs_on_processes_where_pyzmq_is(archive: Path, folder: Path) -> None:
    answer = run(sys.executable, archive, folder, str(folder / "program.py"), "--some", "arguments")
    assert answer.stdout == f"{archive} True 42 --some arguments\n", answer.stderr
    assert answer.stderr == ""


def test_without_pyzmq_it_runs_in_local_mode(archive: Path, folder: Path, bare: str) -> None:
    answer = run(bare, archive, folder, str(folder / "program.py"))
    assert answer.stdout == f"{archive} False 42\n", answer.stderr
    assert answer.stderr == "zray: pyzmq is not installed: this runs in local mode, in one process\n"


def test_with_pyzmq_in_it_nothing_need_be_installed(folder: Path, bare: str, tmp_path: Path) -> None:
    archive = build(tmp_path, "--with-pyzmq")
    cache = tmp_path / "cache"
    for _ in range(2):  # unpacked, and found unpacked
        answer = run(bare, archive, folder, str(folder / "program.py"), XDG_CACHE_HOME=str(cache))
        assert answer.stdout == f"{archive} True 42\n", answer.stderr
        assert answer.stderr == ""
        (unpacked,) = (cache / "zray").iterdir()
        assert [oct(path.stat().st_mode)[-3:] for path in (cache / "zray", unpacked)] == ["700", "700"]
    unpacked.chmod(0o777)
    answer = run(bare, archive, folder, str(folder / "program.py"), XDG_CACHE_HOME=str(cache))
    assert answer.stdout == f"{archive} False 42\n"
    assert "can be written by them: this runs in local mode" in answer.stderr


def test_two_builds_are_the_same(archive: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "usage: python zray.pyz SCRIPT"),
        (["--help"], 0, "usage: python zray.pyz SCRIPT"),
        (["/nowhere/program.py"], 1, "zray: can not read /nowhere/program.py: No such file or directory"),
    ],
)
def test_what_can_not_be_run(archive: Path, folder: Path, arguments: list[str], code: int, words: str) -> None:
    answer = run(sys.executable, archive, folder, *arguments)
    assert answer.returncode == code
    assert words in answer.stderr


def test_a_script_that_fails_says_where(archive: Path, folder: Path) -> None:
    (folder / "broken.py").write_text("import sys\n\n1 / 0\n")
    answer = run(sys.executable, archive, folder, str(folder / "broken.py"))
    assert answer.returncode == 1
    assert f'File "{folder}/broken.py", line 3, in <module>\n    1 / 0' in answer.stderr


def test_a_script_that_changes_its_directory(archive: Path, folder: Path) -> None:
    (folder / "moves.py").write_text("import os\nos.chdir('/tmp')\nprint(__file__)\n" + PROGRAM)
    here = folder.parent  # where run() starts it
    answer = run(sys.executable, Path(os.path.relpath(archive, here)), folder, os.path.relpath(folder / "moves.py", here))
    assert answer.stdout == f"{folder}/moves.py\n{archive} True 42\n", answer.stderr
