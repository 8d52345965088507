"""What a machine can do at most, and how much arithmetic the work takes: the two sides of a share."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm.benchmarking.measuring import Stopwatch

MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
COPIED_BYTES = {"cuda": 2**31, "cpu": 2**27}
RUNS = 10


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of two large square matrices."""
    side = MATRIX_SIDE.get(device.type, 4096)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, in the copy of a large tensor."""
    size = COPIED_BYTES.get(device.type, 2**28)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def median_seconds(work: Callable[[], Any], device: torch.device, runs: int = RUNS) -> float:
    """Of `runs`, after two to warm up."""
    seconds = []
    for _ in range(2 + runs):
        watch = Stopwatch(device)
        work()
        seconds.append(watch.seconds())
    return statistics.median(seconds[2:])


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
