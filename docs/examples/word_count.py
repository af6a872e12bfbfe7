"""Word counts over a folder of text files: a map, a tree of reductions, and the answer checked against a plain loop.

    python word_count.py [FOLDER]

Without a folder it writes some texts of its own.
"""

import random
import re
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path

import zray as ray

SUFFIXES = {".txt", ".md", ".rst", ".py", ".csv", ".log"}
FILES_PER_TASK = 8


def count_words(paths):
    counts = Counter()
    for path in paths:
        counts.update(re.findall(r"\w+", Path(path).read_text(errors="replace").lower()))
    return counts


def write_texts(folder):
    words = [first + rest for first in "bdfglmnprst" for rest in ("a", "ell", "ist", "ound", "ure")]
    for number in range(40):
        chosen = random.Random(number).choices(words, range(len(words), 0, -1), k=5000)
        Path(folder, f"{number:02}.txt").write_text(" ".join(chosen))


def main(folder):
    paths = sorted(str(p) for p in Path(folder).iterdir() if p.suffix in SUFFIXES)
    if not paths:
        sys.exit(f"no text files in {folder}: it looks for {', '.join(sorted(SUFFIXES))}")
    count = ray.remote(count_words)
    merge = ray.remote(lambda one, other: one + other)
    started = time.perf_counter()
    parts = deque(count.remote(paths[i : i + FILES_PER_TASK]) for i in range(0, len(paths), FILES_PER_TASK))
    while len(parts) > 1:  # a tree: neighbours are merged, in the workers, while other files are still being counted
        parts.append(merge.remote(parts.popleft(), parts.popleft()))
    total = ray.get(parts[0])
    elapsed = time.perf_counter() - started

    assert total == count_words(paths), "the cluster and the plain loop disagree"
    print(f"{total.total():,} words in {len(paths)} files, {len(total):,} different ones, counted in {elapsed:.2f} s")
    for word, number in total.most_common(10):
        print(f"{number:10,}  {word}")


if __name__ == "__main__":
    with ray.init(), tempfile.TemporaryDirectory() as own:
        if len(sys.argv) == 1:
            write_texts(own)
        main(sys.argv[1] if len(sys.argv) > 1 else own)
