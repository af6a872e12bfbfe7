"""GPUs are given out by number: whole ones whole, fractions packed together."""

from zray.base.resources import UNIT
from zray.core.gpus import GpuSlots


def test_whole_gpus_are_not_shared() -> None:
    gpus = GpuSlots(3)
    assert gpus.assign(2 * UNIT) == (0, 1)
    assert gpus.assign(UNIT) == (2,)
    assert gpus.assign(UNIT) is None
    gpus.release((0, 1), 2 * UNIT)
    gpus.check()
    assert gpus.assign(UNIT) == (0,)


def test_fractions_share_the_fullest_gpu_that_has_room() -> None:
    gpus = GpuSlots(2)
    half = UNIT // 2
    assert gpus.assign(half) == (0,)
    assert gpus.assign(half) == (0,), "the second GPU stays whole"
    assert gpus.assign(UNIT) == (1,)
    assert gpus.assign(half) is None
    gpus.release((0,), half)
    gpus.check()
    assert gpus.assign(UNIT) is None, "two halves of different GPUs are not one"
