"""Bodies of the cases about placement groups."""

import importlib

from benchmarks import stopwatch

GROUPS = 100


def create_and_remove(engine, seconds):
    """A hundred groups of one bundle are asked for, waited for and removed, as in Ray's program."""
    module = importlib.import_module(f"{engine.name}.util.placement_group")

    def one_round():
        groups = [module.placement_group([{"CPU": 0.001}]) for _ in range(GROUPS)]
        for group in groups:
            if not group.wait(timeout_seconds=30):
                raise TimeoutError("a placement group had no place within 30 s")
        for group in groups:
            module.remove_placement_group(group)

    return {"placement_groups": stopwatch.run(one_round, seconds).rate * GROUPS}
