"""What workers write reaches their driver, line by line, and a file of each worker."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

import zray as ray

from .driving import Script, eventually

LINE = re.compile(r"\((?:(\S+) )?pid=(\d+)(?:, node=([0-9a-f]{8}))?\) (.*)")


def lines_of(text: str) -> list[tuple[str, str]]:
    """The name and the text of each line that came from a worker."""
    return [(found[1], found[4]) for found in map(LINE.fullmatch, text.splitlines()) if found]


def logs_of(session: str) -> dict[str, str]:
    """The files of the workers."""
    folder = os.path.join(session, "logs")
    texts = {}
    for name in sorted(os.listdir(folder)):
        if name.startswith("worker-"):
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                texts[name] = file.read()
    return texts


def test_each_line_has_the_name_of_its_task_or_actor_and_its_stream(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote
        def speaks():
            print("a word")
            print("an error", file=sys.stderr)
            os.write(1, b"from C\\n")
        @ray.remote
        class Talks:
            def talk(self):
                print("a talk")
                print("no end", end="")
        talks = Talks.remote()
        ray.get([speaks.remote(), talks.talk.remote()])
        """
    )
    code, out, errors = program.finish()
    assert code == 0
    assert sorted(lines_of(out)) == [("Talks", "a talk"), ("Talks", "no end"), ("speaks", "a word"), ("speaks", "from C")]
    assert lines_of(errors) == [("speaks", "an error")]


def test_tasks_and_actors_of_one_worker_are_kept_apart(script: Callable[..., Script]) -> None:
    program = script(
        """
        start(num_cpus=1)
        @ray.remote
        def leaves_a_line_open():
            print("begun", end="")
            sys.stderr.close()
        @ray.remote
        def closes():
            print("and closed")
            sys.stdout.close()
        @ray.remote
        def goes_on():
            print("still open")
        for task in leaves_a_line_open, closes, goes_on, leaves_a_line_open:
            ray.get(task.remote())
        @ray.remote(num_cpus=0)
        class Numbered:
            def __init__(self, number):
                print("begins", number)
                self.number = number
            def __repr__(self):
                return f"Numbered({10 // self.number})"
            def speak(self):
                print("speaks")
            async def wait(self):
                print("waits")
        for number in 5, 2, 0:
            actor = Numbered.remote(number)
            ray.get([actor.speak.remote(), actor.wait.remote()])
        """
    )
    code, out, errors = program.finish()
    assert (code, errors) == (0, "")
    lines = lines_of(out)
    assert [text for name, text in lines if name == "leaves_a_line_open"] == ["begun", "begun"]
    assert [(name, text) for name, text in lines if name in ("closes", "goes_on")] == [
        ("closes", "and closed"),
        ("goes_on", "still open"),
    ]
    for title in "Numbered(2)", "Numbered(5)", "Numbered":
        assert [text for name, text in lines if name == title and "begins" not in text] == ["speaks", "waits"]


def test_a_short_script_shows_all_and_no_line_is_torn(script: Callable[..., Script]) -> None:
    program = script(
        """
        start(num_cpus=2)
        @ray.remote
        def many(k):
            for i in range(3000):
                print("task", k, "line", i, "x" * (i % 50))
        ray.get([many.remote(k) for k in range(4)])
        """
    )
    code, out, errors = program.finish()
    assert (code, errors) == (0, "")
    expected = [f"task {k} line {i} " + "x" * (i % 50) for k in range(4) for i in range(3000)]
    assert sorted(text for _, text in lines_of(out)) == sorted(expected)


def test_what_a_crash_says_comes_out(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote(max_retries=0)
        def crashes():
            import ctypes
            print("begun, and then", end="", flush=True)
            ctypes.string_at(0)
        try:
            ray.get(crashes.remote())
        except ray.exceptions.WorkerCrashedError:
            say("crashed")
        """
    )
    code, out, errors = program.finish()
    assert code == 0 and "crashed" in out
    assert ("crashes", "begun, and then") in lines_of(out)
    assert any("Segmentation fault" in text for _, text in lines_of(errors))
    assert any("in crashes" in text for _, text in lines_of(errors))


def test_the_same_line_of_many_workers_is_folded(script: Callable[..., Script]) -> None:
    program = script(
        """
        start(num_cpus=4, _system_config={"output_fold_s": 600.0})
        @ray.remote
        class One:
            def speak(self):
                print("the same")
        actors = [One.options(num_cpus=0).remote() for _ in range(5)]
        ray.get([actor.speak.remote() for actor in actors])
        """
    )
    assert [text for _, text in lines_of(program.finish()[1])] == ["the same", "the same [repeated 4x]"]


def test_who_wants_no_output_gets_none_and_the_files_have_it(script: Callable[..., Script]) -> None:
    program = script(
        """
        context = start(log_to_driver=False)
        @ray.remote
        def speaks():
            print("not for the driver")
        ray.get(speaks.remote())
        say("spoke")
        sys.stdin.readline()
        """
    )
    session = program.session
    program.until("spoke")
    eventually(lambda: any("not for the driver" in text for text in logs_of(session).values()), "a file with the words")
    program.say("go")
    assert program.finish() == (0, "", "")


def test_a_file_is_rotated() -> None:
    with ray.init(num_cpus=1, log_to_driver=False, _system_config={"worker_log_bytes_max": 100_000}) as context:

        @ray.remote
        def speaks() -> None:
            for i in range(20_000):
                print("line", i)

        ray.get(speaks.remote())
        logs = eventually(lambda: _with_last_line(context["session_dir"]), "the last line in a file")
        assert len(logs) == 2 and all(0 < len(text) <= 100_000 for text in logs.values())
        assert all(re.fullmatch(r"worker-[0-9a-f]{8}\.log(\.1)?", name) for name in logs)


def _with_last_line(session: str) -> dict[str, str]:
    logs = logs_of(session)
    return logs if any(text.endswith("line 19999\n") for text in logs.values()) else {}


def test_a_worker_that_prints_without_end_hinders_nobody(script: Callable[..., Script]) -> None:
    program = script(
        """
        start(num_cpus=2, _system_config={"output_backlog_bytes_max": 100_000, "output_bytes_per_s": 100_000})
        @ray.remote
        def endless():
            while True:
                print("and so on " * 5)
        @ray.remote
        def error():
            print("this must be seen", file=sys.stderr)
        ref = endless.remote()
        for _ in range(3):
            ray.get(error.remote())
        ray.get([ray.remote(lambda: 1).remote() for _ in range(200)])
        ray.wait([ref], timeout=1.0)
        with open("/proc/self/status") as file:  # the maximum that getrusage tells has that of the process before exec in it
            say("memory", *[line.split()[1] for line in file if line.startswith("VmHWM")])
        """
    )
    code, out, errors = program.finish()
    assert code == 0
    assert errors.count("this must be seen") == 3
    assert re.search(r"\(zray\) \d+ lines of output were dropped", errors)
    [memory] = re.findall(r"^memory (\d+)$", out, re.MULTILINE)
    assert int(memory) < 200_000


def test_a_driver_whose_output_nobody_reads_goes_on(script: Callable[..., Script]) -> None:
    """Its standard output is a pipe that is full; tasks run nevertheless."""
    program = script(
        """
        start()
        @ray.remote
        def speaks():
            print("x" * 1000 * 1000)
        ray.get([speaks.remote() for _ in range(5)])
        ray.get([ray.remote(lambda: 1).remote() for _ in range(100)])
        sys.stderr.write("done")
        sys.stderr.flush()
        """
    )
    assert program._process.stderr is not None
    eventually(lambda: program._process.stderr.read(4) == b"done", "the tasks were run")
    assert program.finish()[0] == 0


def test_output_in_local_mode_is_that_of_the_program(capsys: Any) -> None:
    with ray.init(local_mode=True):
        ray.get(ray.remote(lambda: print("here")).remote())
        ray.get(ray.remote(lambda: print("there", file=sys.stderr)).remote())
    assert capsys.readouterr() == ("here\n", "there\n")


@pytest.mark.parametrize("wants", [True, False])
def test_output_from_another_node_says_so(script: Callable[..., Script], wants: bool) -> None:
    program = script(
        f"""
        from zray.cluster_utils import Cluster
        cluster = Cluster(head_node_args={{"num_cpus": 1}})
        node = cluster.add_node(num_cpus=1, resources={{"far": 1}})
        ray.init(cluster.address, log_to_driver={wants}, _temp_dir=os.path.join(cluster._home, "h"))
        @ray.remote
        def near():
            print("near")
        @ray.remote(resources={{"far": 1}})
        def far():
            print("far")
        ray.get([near.remote(), far.remote()])
        say("node", node.node_id)
        ray.shutdown()
        cluster.shutdown()
        """
    )
    code, out, errors = program.finish()
    assert code == 0, errors
    nodes = {found[1]: found[3] for found in map(LINE.fullmatch, out.splitlines()) if found}
    if not wants:
        assert nodes == {}
        return
    [far] = re.findall(r"^node (\w+)$", out, re.MULTILINE)
    assert nodes == {"near": None, "far": far[:8]}
