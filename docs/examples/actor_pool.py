"""A pool of actors: each prepares something expensive once, then serves many calls; the pool keeps all of them busy.

Here it is an index of words by their sorted letters, which finds anagrams.
"""

import random

import zray as ray
from zray.util import ActorPool

ACTORS = 2


def dictionary():
    letters = random.Random(5)
    return sorted({"".join(letters.choices("aeilnorst", k=5)) for _ in range(8000)})


class Anagrams:
    def __init__(self, words):
        self.index = {}
        for word in words:
            self.index.setdefault("".join(sorted(word)), []).append(word)

    def find(self, word):
        return self.index.get("".join(sorted(word)), [])

    def find_all(self, words):
        return {word: self.find(word) for word in words}


def main():
    words = dictionary()
    shared = ray.put(words)  # once, for all actors
    pool = ActorPool([ray.remote(Anagrams).remote(shared) for _ in range(ACTORS)])
    plain = Anagrams(words)

    asked = words[::200]
    answers = list(pool.map(lambda actor, word: actor.find.remote(word), asked))  # in the order of what was asked
    assert answers == [plain.find(word) for word in asked]

    # One call costs more than one such answer, so many words go into each call. These come back in whatever order.
    batches = [words[i : i + 500] for i in range(0, len(words), 500)]
    found = {}
    for answer in pool.map_unordered(lambda actor, batch: actor.find_all.remote(batch), batches):
        found.update(answer)
    assert found == plain.find_all(words)
    most = max(found.values(), key=len)
    print(f"{len(found):,} words in {len(batches)} calls; the most anagrams has {', '.join(most[:4])}, ...: {len(most)}")


if __name__ == "__main__":
    with ray.init():
        main()
