"""put makes an object of a value, get reads one object or a list of them."""

import zray as ray

ray.init()

x = "example"
ray.put(x)

x_id = ray.put("example")
assert ray.get(x_id) == "example"

result_ids = [ray.put(i) for i in range(10)]
assert ray.get(result_ids) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
