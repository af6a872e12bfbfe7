"""An actor that runs ten calls at a time in threads, and two in a group of their own.

In the example the method is declared as concurrency_group:"hello", which is not Python, and no such group is declared: here it is
in "io".
"""

import zray as ray


@ray.remote(concurrency_groups={"io": 2})
class ThreadedActor:
    @ray.method(concurrency_group="io")
    def task1(self):
        print("hello 1")


a = ThreadedActor.options(max_concurrency=10).remote()
assert ray.get([a.task1.remote(), a.task1.remote()]) == [None, None]
