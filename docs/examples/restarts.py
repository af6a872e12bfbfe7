"""An actor that is started again after a crash: what it must not forget is in a file, and calls that were lost are sent again.

A restart runs __init__ again, with the same arguments. A call that is sent again may have had its effect before the crash, so it
must not matter when it comes twice: here a deposit has a number, and is booked once.
"""

import json
import os
import tempfile
from pathlib import Path

import zray as ray


@ray.remote(max_restarts=2, max_task_retries=2)
class Account:
    def __init__(self, path):
        self.path = Path(path)
        self.booked = json.loads(self.path.read_text()) if self.path.exists() else {}

    def deposit(self, number, amount, crash_marker=None):
        if str(number) not in self.booked:
            self.booked[str(number)] = amount
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.booked))
            new.replace(self.path)  # whole, or not at all
        if crash_marker and not Path(crash_marker).exists():
            Path(crash_marker).touch()
            os._exit(1)  # booked, but the caller was never told
        return sum(self.booked.values())

    def was_restarted(self):
        return ray.get_runtime_context().was_current_actor_reconstructed


@ray.remote(max_restarts=1)
class Forgetful:
    def crash(self):
        os._exit(1)

    @ray.method(max_task_retries=-1)  # safe to repeat, so it may wait until the actor is back
    def answer(self):
        return "here again"


if __name__ == "__main__":
    with ray.init(), tempfile.TemporaryDirectory() as folder:
        account = Account.remote(f"{folder}/account.json")
        assert ray.get([account.deposit.remote(1, 50), account.deposit.remote(2, 30)]) == [50, 80]
        assert ray.get(account.deposit.remote(3, 20, f"{folder}/crashed")) == 100  # it crashed, and was asked again
        assert ray.get(account.was_restarted.remote())
        print("three deposits are booked once each, although the actor crashed in the third")

        forgetful = Forgetful.remote()
        try:
            ray.get(forgetful.crash.remote())
        except ray.exceptions.ActorUnavailableError as error:  # no retries: whoever called must decide
            print(f"without max_task_retries: {type(error).__name__}")
        assert ray.get(forgetful.answer.remote()) == "here again"
