"""How much main memory there is, and how much of it a process has taken."""

import os
import sys
from pathlib import Path


def main_memory(children: bool = False) -> int:
    """Bytes: the most that this process has taken so far; 0 if not known.

    children: the most that any process started by this one and ended since has taken.
    """
    if not children and (high := _high_water()):
        return high
    if sys.platform == "win32":
        return 0
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss * unit


def installed_memory() -> int:
    """Bytes that this process may take of main memory, at most; 0 if not known."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has none of it
        return 0
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    allowed = limit.read_text().strip() if limit.is_file() else ""
    return min(installed, int(allowed)) if allowed.isdecimal() else installed


def _high_water() -> int:
    """Linux's count of it, which can begin anew; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
