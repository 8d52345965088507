"""How much main memory a process has taken."""

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


def _high_water() -> int:
    """Linux's count of it, which can begin anew; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
