"""An actor is ended by force, whatever it is doing."""

import threading

import zray as ray


@ray.remote
class Sleeper:
    def sleep(self):
        threading.Event().wait()


actor_handle = Sleeper.remote()
ref = actor_handle.sleep.remote()

ray.kill(actor_handle)

try:
    ray.get(ref)
except ray.exceptions.ActorDiedError as error:
    print(error)
else:
    raise AssertionError("the actor should be gone")
