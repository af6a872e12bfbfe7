"""A reference inside a list arrives as a reference, which the task reads itself."""

import zray as ray


@ray.remote
def foo():
    return "lent"


@ray.remote
def temp_borrow(obj_refs):
    x = ray.get(obj_refs[0])
    return x  # noqa: RET504 - as the example has it


x_ref = foo.remote()
assert ray.get(temp_borrow.remote([x_ref])) == "lent"
