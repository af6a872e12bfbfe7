"""A task borrows a reference while it runs; an actor that keeps it borrows it until it lets go.

The example has no read(): it shows that the object is still there when the caller has dropped it.
"""

import zray as ray


@ray.remote
def foo():
    return bytes(1_000_000)


@ray.remote
def temp_borrow(obj_refs):
    x = ray.get(obj_refs[0])
    return len(x)


@ray.remote
class Borrower:
    def borrow(self, obj_refs):
        self.x = obj_refs[0]

    def read(self):
        return len(ray.get(self.x))


x_ref = foo.remote()
assert ray.get(temp_borrow.remote([x_ref])) == 1_000_000  # for a while
b = Borrower.remote()
ray.get(b.borrow.remote([x_ref]))  # for ever
del x_ref
assert ray.get(b.read.remote()) == 1_000_000
