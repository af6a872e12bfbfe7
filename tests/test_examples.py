"""Every example runs, checks its own answer, and ends with code 0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs/examples"


def run(program: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("ZRAY_ADDRESS", None)
    answer = subprocess.run(
        [sys.executable, "-W", "error", str(program), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stderr == ""
    return answer.stdout


@pytest.mark.parametrize(
    "program", sorted(EXAMPLES.rglob("*.py")), ids=lambda program: str(program.relative_to(EXAMPLES))[:-3]
)
def test_example(program: Path, tmp_path: Path) -> None:
    run(program, tmp_path)


@pytest.mark.parametrize("name", ["word_count", "hash_files"])
def test_examples_that_take_a_folder(name: str, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"one two two {number} " * 100)
    assert "20 files" in run(EXAMPLES / f"{name}.py", tmp_path, str(tmp_path))


def test_word_count_refuses_a_folder_without_texts(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no text files in"):
        run(EXAMPLES / "word_count.py", tmp_path, str(tmp_path))


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda program: program.stem)
def test_examples_are_short(program: Path) -> None:
    assert len(program.read_text().splitlines()) <= 60
