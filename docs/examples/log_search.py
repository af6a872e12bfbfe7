"""Searches large logs with generators: what is found is shown as it is found, and nobody reads on when there is enough.

Each file is read by a generator of its own. It pauses while what it has found is not taken, and ends when its reader is gone.
"""

import tempfile
from pathlib import Path

import zray as ray

LINES = 20_000
ENOUGH = 25


@ray.remote
def matches(path, word):
    """The lines of a file that have a word in them."""
    with open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if word in line:
                yield path.name, number, line.strip()


def search(paths, word):
    """The matches of all files, in the order in which they are found."""
    running = [matches.remote(path, word) for path in paths]
    while running:
        [generator], _ = ray.wait(running)
        for ref in generator:
            yield ray.get(ref)
            if not generator.next_ready():  # another may have found something
                break
        if generator.is_finished():
            running.remove(generator)


def write_logs(directory):
    paths = [directory / f"{name}.log" for name in ("web", "mail", "disk")]
    for path in paths:
        path.write_text("".join(f"{n} {'error' if n % 100 == 0 else 'fine'} at {path.stem}\n" for n in range(1, LINES + 1)))
    return paths


if __name__ == "__main__":
    with ray.init(), tempfile.TemporaryDirectory() as directory:
        paths = write_logs(Path(directory))

        found = list(search(paths, "error"))
        assert len(found) == 3 * LINES // 100
        for path in paths:  # those of one file come in their order
            assert [number for name, number, _ in found if name == path.name] == list(range(100, LINES + 1, 100))

        some = [match for match, _ in zip(search(paths, "fine"), range(ENOUGH), strict=False)]
        assert len(some) == ENOUGH
        print(f"{len(found)} errors, the first one {found[0]}; and {len(some)} fine lines, without reading to the end")
