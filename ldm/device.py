"""Which device and number format to compute with."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from ldm.checks import DEVICES, PRECISIONS
from ldm.errors import UserError
from ldm.memory import installed_memory, main_memory

log = logging.getLogger(__name__)
T = TypeVar("T")

_WORTHWHILE = 0.7  # of the time: what fewer threads must come below to be chosen

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, else Apple's MPS, else the CPU. Raises UserError
    if it is not there."""
    name = str(name)  # a torch.device will do
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    kind = name.split(":")[0]
    if kind not in there:
        raise UserError(f"device {name!r} is not one of {', '.join(DEVICES)}")
    if not there[kind]:
        raise UserError(f"device {name!r} is not available here; use --device cpu or auto")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; "auto" is bf16 where the device is fast at it and fp32 elsewhere. Raises
    UserError."""
    if name not in PRECISIONS:
        raise UserError(f"precision {name!r} is not one of {', '.join(PRECISIONS)}")
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 is for GPUs; on the CPU use fp32 or bf16")
    return name


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32."""
    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):
            # torch 2.10; every processor with tiles has them for bfloat16
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def use_free_threads(seconds: Callable[[int], float] | None = None) -> int:
    """Have torch compute with as many threads as are fastest now; how many that are.

    Where other programs keep the processors busy, threads wait for each other at every step, and
    two may take ten times as long as one. Tries the usual number and its halves, a few
    milliseconds each on a quiet machine; one that is hardly faster does not count. The environment
    variable OMP_NUM_THREADS overrules it. seconds: measures a number of threads.
    """
    now, usual = torch.get_num_threads(), _usual_threads()
    if usual == 1 or "OMP_NUM_THREADS" in os.environ:
        return now
    measure = seconds or _seconds_with
    numbers = [usual]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    measure(usual)  # the first has much to begin with
    times = {number: sorted(measure(number) for _ in range(3))[1] for number in numbers}
    best = min(numbers, key=lambda number: times[number])
    if times[best] > _WORTHWHILE * times[usual]:
        best = usual
    torch.set_num_threads(best)
    if best != now:
        log.info("other programs share the processors: computing with %d of %d threads now", best, usual)
    return best


@cache
def _usual_threads() -> int:
    """torch's number before anything here changed it."""
    return torch.get_num_threads()


def _seconds_with(threads: int) -> float:
    """What a little of a network's work takes."""
    torch.set_num_threads(threads)
    x, weight = torch.ones(1, 64, 64, 64), torch.ones(64, 64, 3, 3)
    began = time.perf_counter()
    for _ in range(2):
        torch.relu(torch.conv2d(x, weight, padding=1))
    return time.perf_counter() - began


def reset_peak_memory(device: torch.device) -> bool:
    """Have `peak_memory` begin anew with what is taken now; whether the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux alone
    except OSError:
        return False
    return True


def peak_memory(device: torch.device, children: bool = False) -> int:
    """Bytes: the most that torch has allocated on a GPU, or that this process has taken of main
    memory; 0 if not known.

    children: the most that any process started by this one and ended since has taken.
    """
    if device.type == "cuda":
        return 0 if children else torch.cuda.max_memory_allocated(device)
    return main_memory(children)


def total_memory(device: torch.device) -> int:
    """Bytes that a GPU has, or that this process may take of main memory; 0 if not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return installed_memory()


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Within it, running out of memory is a UserError with this advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of torch's errors, only the GPU's has a class of its own.
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise UserError(f"not enough memory: {advice}") from error
        raise


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which to run the networks."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, _TYPES[precision])


@contextmanager
def own_ways(device: torch.device) -> Iterator[None]:
    """Within it, what the caller has set torch to makes no difference: an autocast of its own, a
    default device."""
    with torch.autocast(device.type, enabled=False):
        # Only where there is one: it is looked at in every call of torch.
        is_usual = torch.get_default_device().type == "cpu"
        with nullcontext() if is_usual else torch.device("cpu"):
            yield


WARM_UP = 2  # runs before recording: libraries choose their algorithms, torch.compile compiles


def cuda_graph(run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
    """Record the kernels of `run` on the current GPU: (its result, what runs them again).

    Every replay overwrites the result's tensors. Nothing in `run` may wait for the GPU or read from
    the CPU, and autocast has to begin within it: the weights that it converts once would else be
    gone when the graph runs again.
    """
    stream, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(stream)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            run()
    stream.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return result, graph.replay
