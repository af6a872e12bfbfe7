"""SHA-256 of every file of a folder, with a bounded number of tasks in flight.

    python hash_files.py [FOLDER]

``ray.wait`` holds the program back: a million files would not become a million tasks at once.
"""

import hashlib
import random
import sys
import tempfile
from pathlib import Path

import zray as ray

IN_FLIGHT_MAX = 16


@ray.remote
def sha256(path):
    return path, hashlib.sha256(Path(path).read_bytes()).hexdigest()


def hash_all(paths):
    digests, running = {}, []

    def take(number):
        nonlocal running
        ready, running = ray.wait(running, num_returns=number)
        digests.update(ray.get(ready))

    for path in paths:
        if len(running) == IN_FLIGHT_MAX:
            take(1)
        running.append(sha256.remote(path))
    if running:
        take(len(running))
    return digests


def main(folder):
    paths = sorted(str(path) for path in Path(folder).iterdir() if path.is_file())
    digests = hash_all(paths)
    for path in paths:
        assert digests[path] == hashlib.sha256(Path(path).read_bytes()).hexdigest(), path
    print(f"{len(paths)} files, {len(set(digests.values()))} different ones")


if __name__ == "__main__":
    with ray.init(), tempfile.TemporaryDirectory() as own:
        if len(sys.argv) == 1:
            for number in range(100):
                content = random.Random(number % 90).randbytes(50_000)
                Path(own, f"{number:03}.bin").write_bytes(content)
        main(sys.argv[1] if len(sys.argv) > 1 else own)
