"""How the whole suite is spread over processes: `python dev.py test` asks pytest-xdist for -n auto.

The unit is a file, since its fixtures are made once for all of its tests; a folder whose tests share a server is one
unit. What takes longest begins first, so that no process ends long before another.
"""

import os

MOST = 4  # each process holds a torch and a ComfyUI, 2 GB, and the longest unit bounds what more of them gain
TOGETHER = ("tests/browser/", "tests/workflows/")
LONGEST_FIRST = ("tests/kernels/test_cross_compile.py", "tests/browser/")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def number_of_workers(paths_given: bool, has_gpu: bool, shows_output: bool) -> int:
    """Processes for -n auto; 0: everything in this one.

    Args:
        paths_given: the command line names files or folders: often over before a second process has begun.
        has_gpu: tests there time kernels and fill the GPU's memory.
        shows_output: -s; what other processes write is lost.
    """
    found = min(cores(), MOST)
    return 0 if paths_given or has_gpu or shows_output or found < 2 else found


def share_cores(workers: int) -> None:
    """Give each process that starts from now on its part of the cores, unless the user has said how many."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))


def unit_of(test: str) -> str:
    """The unit of a test, given by its id."""
    return next((folder for folder in TOGETHER if test.startswith(folder)), test.partition("::")[0])


def turn_of(test: str) -> int:
    """Sorts tests into the order in which units are handed out."""
    return next((i for i, unit in enumerate(LONGEST_FIRST) if test.startswith(unit)), len(LONGEST_FIRST))


def make_scheduler(config, log):
    """pytest-xdist's scheduler of files, with our units, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class UnitScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return UnitScheduling(config, log)
