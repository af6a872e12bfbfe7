"""The engine's processes: their memory and their processor time."""

import os
import time

import psutil


def engine_processes() -> list[psutil.Process]:
    """All processes of the engine except this one, the driver.

    They are found below the supervisor, not below the driver: an engine may well detach its daemons from the driver, but the
    supervisor adopts whatever detaches, and it runs one session at a time.
    """
    driver = os.getpid()
    return [process for process in psutil.Process(os.getppid()).children(recursive=True) if process.pid != driver]


def proportional_bytes(pid: int) -> int:
    """PSS: a page shared by n processes counts 1/n in each, so the sum over forked processes counts it once."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


class ProcessorTime:
    """Seconds of processor time since creation: of this process, and of the engine's others.

    What a process spent that ended in the meantime is lost, and the kernel counts in steps of 10 ms: measure over a second.
    """

    def __init__(self) -> None:
        self._others = self._read()
        self._driver = time.process_time()

    def spent(self) -> tuple[float, float]:
        driver = time.process_time() - self._driver
        others = sum(seconds - self._others.get(key, 0.0) for key, seconds in self._read().items())
        return driver, others

    @staticmethod
    def _read() -> dict[tuple[int, float], float]:
        found = {}
        for process in engine_processes():
            try:
                times = process.cpu_times()
                found[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return found


def idle_memory(engine, seconds: float) -> dict[str, float]:
    engine.occupy(0.1)
    # Workers that were started ahead of need are still loading; a cluster is idle when they are done.
    time.sleep(2.0)
    processes = engine_processes()
    others = sum(proportional_bytes(process.pid) for process in processes)
    return {
        "memory": others / 1e6,
        "memory_with_driver": (others + proportional_bytes(os.getpid())) / 1e6,
        "processes": len(processes),
    }
