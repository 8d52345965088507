"""What all benchmarks share: rows in processes of their own, peak memory, PSNR.

Nothing here imports Lightning, which would count in the memory of what does without it.
"""

import json
import subprocess
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.program import arguments as own_arguments
from ldm.program import own_command, own_environment


class Stopwatch:
    """Seconds since it was made, all work on the device done. On CUDA by the GPU's own clock, from the first kernel on."""

    def __init__(self, device: torch.device):
        self.device = device
        self._wait()
        self._event = self._new_event()
        self._began = time.perf_counter()

    def seconds(self) -> float:
        if self._event is not None:
            ended = self._new_event()
            ended.synchronize()
            return self._event.elapsed_time(ended) / 1000
        self._wait()
        return time.perf_counter() - self._began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def _new_event(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def exact_float32() -> None:
    """See that float32 means float32 on GPUs too, not TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def in_own_process(*arguments: str) -> dict[str, float] | None:
    """What this very command prints with these arguments added; None if it fails, which it has then explained.

    Peak memory and compiled code of one row must not be another's.
    """
    done = subprocess.run(
        own_command("benchmark", *own_arguments(), *arguments),
        env=own_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def row_failed(row: int) -> UserError:
    return UserError(f"row {row + 1} failed, see above; leave it out with --rows")


def places(numbers: Sequence[int], count: int) -> list[int]:
    """Where the rows of these numbers, which count from 1, stand in a list of `count`. Raises UserError for one not there."""
    if not all(1 <= number <= count for number in numbers):
        raise UserError(f"--rows takes numbers from 1 to {count}")
    return [number - 1 for number in numbers]


def machine(device: torch.device) -> str:
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type.upper()}, {torch.get_num_threads()} threads"
    )
    return f"{where}, torch {torch.__version__}"


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratios in dB of pictures (N, 3, H, W), cut to [-1, 1]; infinite where they are equal."""
    difference = pictures.double().clamp(-1, 1) - reference.double().clamp(-1, 1)
    return 10 * torch.log10(2**2 / difference.square().mean(dim=(1, 2, 3)))
