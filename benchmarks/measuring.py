"""What all benchmarks share: rows in processes of their own, what a machine can do at most, PSNR.

Nothing here imports Lightning, which would count in the memory of what does without it.
"""

import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from ldm.errors import UserError
from ldm.text import one_line

MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
COPIED_BYTES = {"cuda": 2**31, "cpu": 2**27}

T = TypeVar("T")


def exact_float32() -> None:
    """See that float32 means float32 on GPUs too, not TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def in_own_process(row: str, work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns in a process of its own, as peak memory and compiled code of one row must
    not be another's.

    Raises UserError, which names the row, where it fails.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    except BrokenProcessPool as error:
        raise UserError(f"row {row} failed: its process was ended, maybe as memory was short") from error
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        raise UserError(f"row {row} failed ({one_line(error)}); leave it out with --rows") from error


def machine(device: torch.device) -> str:
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type.upper()}, {torch.get_num_threads()} threads"
    )
    return f"{where}, torch {torch.__version__}"


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratios in dB of pictures (N, 3, H, W), cut to [-1, 1]; infinite
    where they are equal."""
    difference = pictures.double().clamp(-1, 1) - reference.double().clamp(-1, 1)
    return 10 * torch.log10(2**2 / difference.square().mean(dim=(1, 2, 3)))


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of two large square matrices."""
    side = MATRIX_SIDE.get(device.type, 4096)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, in the copy of a large tensor."""
    size = COPIED_BYTES.get(device.type, 2**28)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source))


def median_seconds(work: Callable[[], Any]) -> float:
    return Timer("work()", globals={"work": work}).blocked_autorange().median


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
