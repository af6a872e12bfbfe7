"""A value becomes an object and comes back; the first call starts zray."""

import zray as ray

a = 1
object_ref = ray.put(a)
print(object_ref, ray.get(object_ref))

assert ray.get(object_ref) == 1
