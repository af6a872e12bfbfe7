"""The leak check finds what outlives a test, wherever it hides from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

LEAVING = """
import os, subprocess, sys

def test_that_leaves_a_process():
    {how}
"""
IN_A_SESSION = "subprocess.run(['setsid', '--fork', 'sleep', '1000'])"
IN_OURS = "subprocess.run(['sh', '-c', 'sleep 1000 > /dev/null 2>&1 &'])"


@pytest.mark.parametrize("how", [IN_A_SESSION, IN_OURS])
def test_a_process_that_is_no_child_any_more_is_found_and_ended(how: str, tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "test_leaving.py")
    with open(path, "w") as file:
        file.write(LEAVING.format(how=how))
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "--rootdir", str(tmp_path)]
    result = subprocess.run(
        [*command, path],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"the test left behind: processes: \S+(?: \d+)? \(sleep (\d+)\)", result.stdout)
    assert result.returncode == 1 and found, result.stdout + result.stderr
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{found[1]}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{found[1]}")
