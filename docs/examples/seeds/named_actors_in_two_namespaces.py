"""A name belongs to a namespace: from another one an actor is found if that is named too.

The example is two programs that join one running cluster, each with a namespace of its own. Here it is one program, and the
second actor is told its namespace.
"""

import zray as ray


@ray.remote
class Actor:
    pass


@ray.remote
class ActorTwo:
    pass


ray.init(namespace="actor_one")
a = Actor.options(name="actor1", lifetime="detached").remote()
a2 = ActorTwo.options(name="actor2", lifetime="detached", namespace="actor_two").remote()

print(ray.get_actor("actor2", namespace="actor_two"))
print(ray.get_actor("actor1", namespace="actor_one"))
assert ray.get_actor("actor1") == a

try:
    ray.get_actor("actor2")
except ValueError as error:
    print(error)
else:
    raise AssertionError("there is no actor2 in this namespace")
