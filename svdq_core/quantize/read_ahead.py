"""Finished layers read from the disk, and their sums looked at, by several threads while others are written."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ..checkpoint.output import Output, whole

THREADS = 4  # a sum takes a core a second for each GB or two; a layer is a tenth of a GB


def read_ahead(outputs_of: Callable[[str], Sequence[Output]], names: Sequence[str]) -> Iterator[list[Output]]:
    """The outputs of each name in turn, in memory; at most THREADS + 1 of them at a time.

    Args:
        outputs_of: opens them; asked from several threads.
    """

    def load(name: str) -> list[Output]:
        return [whole(output.name, output.tensor()) for output in outputs_of(name)]

    waiting: deque[Future[list[Output]]] = deque()
    with ThreadPoolExecutor(THREADS) as readers:
        try:
            for name in names:
                waiting.append(readers.submit(load, name))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
