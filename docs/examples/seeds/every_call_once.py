"""The calls of the API's table: init, remote, put, get of one and of many, wait."""

import zray as ray

ray.init()


@ray.remote
def fun(x):
    return x + 1


x_id = ray.put(1)
ret_id = fun.remote(x_id)
assert ray.get(ret_id) == 2

object_ids = [fun.remote(x) for x in range(4)]
assert ray.get(object_ids) == [1, 2, 3, 4]

ready_ids, not_ready_ids = ray.wait(object_ids)
assert (len(ready_ids), len(not_ready_ids)) == (1, 3)
