"""A crawler: an async actor follows links through a folder of pages, many at a time, and answers questions meanwhile.

Its methods are coroutines that take turns in one thread, so they share its state without locks. It awaits tasks, which read
the pages in other processes.
"""

import asyncio
import re
import tempfile
from pathlib import Path

import zray as ray

PAGES = 120


def write_pages(folder):
    """A tree of pages with links across it, so that all can be found, and many twice; and one that nobody links to."""
    for number in range(PAGES):
        links = [number * factor % PAGES for factor in (5, 7, 11)]
        links += [child for child in range(3 * number + 1, 3 * number + 4) if child < PAGES]
        Path(folder, f"{number}.html").write_text("".join(f'<a href="{link}.html">{link}</a>' for link in links))
    Path(folder, "lonely.html").write_text("nobody comes here")


@ray.remote
def links_of(path):
    return re.findall(r'href="([^"]+)"', Path(path).read_text())


@ray.remote
class Crawler:
    def __init__(self, folder):
        self.folder, self.seen, self.reading, self.most = folder, set(), 0, 0

    async def crawl(self, page):
        if page not in self.seen:
            self.seen.add(page)
            self.reading += 1
            self.most = max(self.most, self.reading)
            links = await links_of.remote(f"{self.folder}/{page}")
            self.reading -= 1
            await asyncio.gather(*[self.crawl(link) for link in links])

    async def report(self):
        return len(self.seen), self.most


if __name__ == "__main__":
    with ray.init(), tempfile.TemporaryDirectory() as folder:
        write_pages(folder)
        crawler = Crawler.remote(folder)
        whole = crawler.crawl.remote("0.html")
        while not ray.wait([whole], timeout=0.1)[0]:
            print(f"{ray.get(crawler.report.remote())[0]} pages so far")
        ray.get(whole)  # raises what went wrong, if anything did
        found, most = ray.get(crawler.report.remote())
        assert found == PAGES
        assert most > 1
        print(f"{found} pages can be reached; at times {most} were being read at once")
