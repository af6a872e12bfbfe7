"""Actors with names: whoever knows the name can call them, without being given a handle.

An actor lives as long as somebody has a handle of it, named or not. A detached one lives until it is killed.
"""

import zray as ray


@ray.remote
class Registry:
    def __init__(self):
        self.counts = {}

    def add(self, key):
        self.counts[key] = self.counts.get(key, 0) + 1

    def read(self):
        return self.counts


@ray.remote
def visit(city):
    """Whoever comes first makes the actor of that name; those who come later get the same one."""
    visits = Registry.options(name="visits", get_if_exists=True, lifetime="detached").remote()
    ray.get(visits.add.remote(city))


@ray.remote
def make(name, **options):
    """Makes an actor, and has no handle of it when it returns."""
    ray.get(Registry.options(name=name, **options).remote().add.remote("made"))


def is_there(name, **namespace):
    try:
        return ray.get_actor(name, **namespace) is not None
    except ValueError:
        return False


if __name__ == "__main__":
    with ray.init(namespace="travel"):
        ray.get([visit.remote(city) for city in ("Lima", "Oslo", "Lima", "Pune", "Lima")])
        visits = ray.get_actor("visits")
        assert ray.get(visits.read.remote()) == {"Lima": 3, "Oslo": 1, "Pune": 1}
        print(ray.get(visits.read.remote()), "counted by tasks that knew only a name")
        assert is_there("visits", namespace="travel")
        assert not is_there("visits", namespace="elsewhere")

        ray.get([make.remote("stays", lifetime="detached"), make.remote("goes")])
        assert ray.get(ray.get_actor("stays").read.remote()) == {"made": 1}
        ray.kill(ray.get_actor("stays"))
        while is_there("goes") or is_there("stays"):  # the news of an end takes a moment to get about
            pass
        print("the one ended with its last handle, the detached one when it was killed")
