"""A task with several results has a reference for each. The option's old name is understood too."""

import zray as ray


@ray.remote(num_return_vals=3)
def return_multiple():
    return 1, 2, 3


a_id, b_id, c_id = return_multiple.remote()
assert ray.get([a_id, b_id, c_id]) == [1, 2, 3]
