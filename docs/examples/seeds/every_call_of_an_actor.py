"""The calls of the API's table for actors: remote for the class, for an actor and for its method."""

import zray as ray

ray.init()


@ray.remote
class Actor(object):  # noqa: UP004 - as the example has it
    def method(self, y):
        return y + 1


y = 1
a = Actor.remote()
ret_id = a.method.remote(y)
assert ray.get(ret_id) == 2
