"""An argument that many tasks take is copied for each call, or once if it is put first."""

import zray as ray


@ray.remote
def f(x):
    return len(x)


x = bytes(1_000_000)

copied_ten_times = [f.remote(x) for _ in range(10)]

x_id = ray.put(x)
copied_once = [f.remote(x_id) for _ in range(10)]

assert ray.get(copied_ten_times) == ray.get(copied_once) == [1_000_000] * 10
