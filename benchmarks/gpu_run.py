"""Everything worth doing in a short time on a GPU, in order of value, each part with a time of its own.

    python benchmarks/gpu_run.py --output gpu --minutes 9                      # the parts check, speed and training
    python benchmarks/gpu_run.py --output gpu --minutes 9 --parts bundled --pictures packed

  check      is what the GPU computes right: every number format against float32 on the CPU, the same seed twice
  speed      the table of docs/performance.md: whole pictures by every way (scripts/benchmark.py --suite gpu)
  training   the same for training steps
  bundled    goes on training the bundled model, on pictures from benchmarks/pack_pictures.py, in all the time that is left

What is done is written to --output at once: killed or out of time, the same command does the rest. The bundled model's weights come back in
parts of at most 15 MiB (weights.part-0, ...); `cat weights.part-* > model.safetensors` makes them whole. With --rehearse all parts run in tiny
sizes, on a CPU too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from ldm.benchmarking.measuring import machine, psnr
from ldm.benchmarking.models import fill_zero_weights
from ldm.cli import ArgumentParser, own_environment, own_files, run
from ldm.device import autocast, choose_device
from ldm.errors import UserError
from ldm.files import ROOT, check_folder, written_whole
from ldm.images import image_to_tensor
from ldm.inference import build_for_inference
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline import StyleTransferPipeline

SECONDS = {"check": 60, "speed": 180, "training": 90, "bundled": 3600}  # at most
PART_BYTES = 15 * 2**20
SPARE = 20  # seconds to write what there is
MEANT_FOR_CUDA = ("fp32", "bf16", "fp16")
TINY = ["--config", "configs/mini.yaml", "--sizes", "64", "--batch-sizes", "1", "--training-batch-sizes", "1", "--repeats", "1"]
PHOTO, PAINTING = ROOT / "data/contents/astronaut.jpg", ROOT / "data/styles/van_gogh_wheat_field_with_cypresses.jpg"


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M", help="in all (default: 9)")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=["check", "speed", "training"], metavar="PART", help="some of check, speed, training, bundled (default: all but bundled)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="for bundled: photos.zip and paintings.zip, or folders of these names")
    parser.add_argument("--start", default="mini", metavar="mini|FILE", help="for bundled: the weights to go on from")
    parser.add_argument("--phases", nargs="+", default=["cross"], metavar="PHASE", help="for bundled: as of scripts/train_bundled.py (default: cross)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rehearse", action="store_true", help="everything in tiny sizes")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if not args.minutes > 0:
        raise UserError(f"--minutes must be above 0, got {args.minutes}")
    if "bundled" in args.parts and args.pictures is None:
        raise UserError("the part bundled needs --pictures, see benchmarks/pack_pictures.py")
    check_folder(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * args.minutes, []
    parts: dict[str, Callable[[argparse.Namespace, float], None]] = {"check": check, "speed": speed, "training": training, "bundled": bundled}
    for name in [name for name in parts if name in args.parts]:
        seconds = min(SECONDS[name], end - time.monotonic() - SPARE)
        if (args.output / f"{name}.done").exists() or seconds <= 0:
            print(f"{name}: {'done before' if seconds > 0 else 'no time left'}", flush=True)
            continue
        began = time.monotonic()
        try:
            parts[name](args, seconds)
            (args.output / f"{name}.done").touch()
        except (UserError, OSError, RuntimeError, subprocess.SubprocessError) as error:  # the next part may work all the same
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


# Is it right


def check(args: argparse.Namespace, seconds: float) -> None:
    """Writes check.json: relative errors and PSNR of every number format against float32 on the CPU."""
    device = choose_device(args.device)
    result: dict[str, object] = {"machine": machine(device)}
    formats = MEANT_FOR_CUDA if device.type == "cuda" else MEANT_FOR_CUDA[:2]
    (reference,) = painted("cpu", "fp32", args, times=1)
    for precision in formats:
        one, again = painted(device, precision, args, times=2)
        result[f"bundled model, {precision}"] = {
            "PSNR of a fast picture": float(psnr(one, reference)),
            "the same twice": bool(torch.equal(one, again)),
        }
    config = "configs/mini.yaml" if args.rehearse else "configs/kl16_content12.yaml"
    torch.manual_seed(0)
    model = build_for_inference(ROOT / config, DualCondModel).eval().requires_grad_(False)
    fill_zero_weights(model.model)
    inputs = random_inputs(model)
    expected = prediction(model, inputs, "fp32")
    model.to(device)
    for precision in formats:
        got = prediction(model, inputs, precision)
        result[f"{Path(config).name}, random weights, {precision}"] = {"relative error of a prediction": float((got - expected).norm() / expected.norm())}
    write_json(args.output / "check.json", result)
    print(json.dumps(result, indent=1), flush=True)


def painted(device: torch.device | str, precision: str, args: argparse.Namespace, times: int) -> list[torch.Tensor]:
    """The same picture (1, 3, H, W), painted that many times by one pipeline."""
    pipeline = StyleTransferPipeline.from_pretrained(device=str(device), precision=precision)
    settings = {"look": "fast", "size": 64 if args.rehearse else 256, "steps": 2 if args.rehearse else None}
    return [image_to_tensor(pipeline(PHOTO, PAINTING, **settings))[None] for _ in range(times)]


def random_inputs(model: DualCondModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (1, model.channels, model.image_size, model.image_size)
    x, content = torch.randn(shape), torch.randn(shape)
    return x, torch.tensor([500]), content, torch.rand(1, model.null_style_vector.weight.shape[1])


@torch.no_grad()
def prediction(model: DualCondModel, inputs: tuple[torch.Tensor, ...], precision: str) -> torch.Tensor:
    x, t, content, style = (value.to(model.device) for value in inputs)
    with autocast(model.device, precision):
        return model.apply_model(x, t, model.condition(content, style)).float().cpu()


# How fast is it


def speed(args: argparse.Namespace, seconds: float) -> None:
    full = ["--rows", *map(str, range(1, 11)), "--repeats", "5"]
    benchmark("speed", [*TINY, "--rows", "1", "4", "--published-steps", "1"] if args.rehearse else full, args, seconds)


def training(args: argparse.Namespace, seconds: float) -> None:
    full = ["--rows", *map(str, range(11, 18)), "--training-batch-sizes", "16", "128", "--repeats", "5"]
    benchmark("training", [*TINY, "--rows", "14"] if args.rehearse else full, args, seconds)


def benchmark(name: str, options: list[str], args: argparse.Namespace, seconds: float) -> None:
    """A suite's tables into NAME.txt; its numbers, one by one, into NAME/."""
    command = ["scripts/benchmark.py", "--suite", "gpu", "--device", args.device, "--output", str(args.output / name), *options]
    output = called(command, seconds)
    with written_whole(args.output / f"{name}.txt") as aside:
        aside.write_text(output)


# The bundled model


def bundled(args: argparse.Namespace, seconds: float) -> None:
    """Trains in the time that there is, and writes the weights in parts."""
    pictures = {name: unpacked(args.pictures, name, args.output) for name in ("photos", "paintings")}
    hours = max(seconds - (0 if args.rehearse else 60), 10) / 3600  # starting and ending take their time, too
    folder = args.output / "training-bundled"
    command = ["scripts/train_bundled.py", "--output", str(folder), "--hours", f"{hours:.5f}", "--start", args.start, "--phases", *args.phases]
    for name, path in pictures.items():
        command += [f"--{name}", str(path)]
    called(command, seconds + SPARE / 2)
    weights = (folder / "model.safetensors").read_bytes()
    for number in range(-(-len(weights) // PART_BYTES)):
        with written_whole(args.output / f"weights.part-{number}") as aside:
            aside.write_bytes(weights[number * PART_BYTES : (number + 1) * PART_BYTES])


def unpacked(packed: Path, name: str, output: Path) -> Path:
    """The folder of pictures of this name. Raises UserError where there is none."""
    if (packed / name).is_dir():
        return packed / name
    if not (packed / f"{name}.zip").is_file():
        raise UserError(f"{packed}: neither {name}.zip nor a folder {name} in it")
    folder = output / "pictures" / name
    if not folder.is_dir():
        aside = folder.with_name(f".{name}")  # what a killed run left of it is unpacked again
        with zipfile.ZipFile(packed / f"{name}.zip") as archive:
            archive.extractall(aside)
        aside.rename(folder)
    return folder


def called(command: list[str], seconds: float) -> str:
    """Run a program of this project; what it printed. Raises UserError where it fails, SubprocessError where its time is over."""
    call = {"env": own_environment(), "text": True, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen([sys.executable, *own_files(command)], **call) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:  # what it has started ends with it, else it would hold the GPU
            _end_all(process)
            raise
    print(output, flush=True)
    if process.returncode:
        raise UserError(f"{command[0]} ended with exit code {process.returncode}, see above")
    return output


def _end_all(process: subprocess.Popen) -> None:
    """End a program and all that it has started, first by Ctrl-C, so that training writes a checkpoint."""
    for number, patience in ((signal.SIGINT, SPARE / 2), (signal.SIGKILL, None)):
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            pass


def write_json(path: Path, content: object) -> None:
    with written_whole(path) as aside:
        aside.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    run(main)
