"""Starting zray on this machine, asking whether it runs, and ending it."""

import zray as ray

ray.init()
assert ray.is_initialized() == True  # noqa: E712 - as the example has it

ray.shutdown()
assert ray.is_initialized() == False  # noqa: E712
