"""Actors are found by name and namespace, made only if they are not there yet, and ended by force or by themselves.

The example is three programs that join one running cluster, each with a namespace of its own. Here it is one program, in
"colors", and the other namespace is told. The example does not define exit().
"""

import zray as ray


@ray.remote
class Actor:
    def exit(self):
        ray.actor.exit_actor()


ray.init(namespace="colors")
orange = Actor.options(name="orange", lifetime="detached").remote()
fruit = Actor.options(name="orange2", lifetime="detached", namespace="fruit").remote()

try:
    ray.get_actor("orange2")
except ValueError:
    print("orange2 is not a color")
else:
    raise AssertionError("it should not be found here")
assert ray.get_actor("orange") == orange
assert ray.get_actor("orange2", namespace="fruit") == fruit

a = Actor.options(name="g1", get_if_exists=True).remote()
assert Actor.options(name="g1", get_if_exists=True).remote() == a

ray.kill(a)
for gone in (a.exit.remote(), orange.exit.remote()):  # the one is killed already, the other ends itself
    try:
        ray.get(gone)
    except ray.exceptions.ActorDiedError:
        print("gone")
    else:
        raise AssertionError("it should be gone")
