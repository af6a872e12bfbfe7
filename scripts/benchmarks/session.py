"""The child's main program: one engine, started once, and cases run on it in turn.

It tells the supervisor what it finds in lines of JSON on a pipe of its own, because engines print to the other streams.
"""

import sys
import time

from benchmarks.engine import ENGINES, Absent


def main() -> None:
    # json, numpy, psutil and the rest are loaded only after the start has been timed: an engine that needs them
    # should pay for them, as it would in a user's script.
    name, report_fd, plan_text = sys.argv[1:]
    engine = ENGINES[name]()
    start = time.perf_counter()
    try:
        engine.load()
        loaded = time.perf_counter()
        engine.start()
        engine.call_one()
        ready = time.perf_counter()
        hello = {"start": ready - loaded, "import_and_start": ready - start}
    except Absent as error:
        hello = {"absent": str(error)}
    except Exception as error:
        hello = {"failed": f"{type(error).__name__}: {error}"}

    from benchmarks.session import Session

    session = Session(engine, int(report_fd), plan_text)
    if "start" in hello:
        hello["version"] = engine.version
        session.run(hello)
    else:
        session.tell(hello)


class Session:
    def __init__(self, engine, report_fd: int, plan_text: str) -> None:
        import json
        import os

        self._dumps, self._write = json.dumps, os.write
        self._engine = engine
        self._fd = report_fd
        os.set_inheritable(report_fd, False)
        self._plan = json.loads(plan_text)

    def tell(self, message: dict) -> None:
        self._write(self._fd, self._dumps(message).encode() + b"\n")

    def run(self, hello: dict) -> None:
        import signal

        # Asked to end in the middle of a case, it still stops the engine. Installed after the start, since an engine may
        # install its own.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            self.tell(hello)
            for name in self._plan["cases"]:
                self._run_case(name)
        finally:
            self._engine.stop()
        self.tell({"stopped": True})

    def _run_case(self, name: str) -> None:
        import faulthandler
        import gc
        import importlib

        from benchmarks.case import BY_NAME, Skipped

        case = BY_NAME[name]
        module, function = case.body.split(":")
        body = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        # If the engine hangs, the supervisor shows where from what this leaves in the log.
        faulthandler.dump_traceback_later(case.limit_s - 2)
        try:
            values = body(self._engine, self._plan["seconds"], *case.arguments)
            message = {"case": name, "values": values}
        except Skipped as error:
            message = {"case": name, "skipped": str(error)}
        except Exception as error:
            message = {"case": name, "error": f"{type(error).__name__}: {error}"}
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.tell(message)
        # Engines free objects behind the caller's back; the next case should not pay for it.
        gc.collect()
        time.sleep(0.2)
