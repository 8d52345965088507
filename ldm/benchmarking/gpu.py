"""Everything that a GPU is measured by: its own limits, how exact every fast path is, whole pictures, training steps.

Each row runs in a process of its own, but on a GPU, where starting takes longer than measuring, those that compile nothing share one.
Each number is written to --output as soon as it is there: a run that is stopped goes on where it was.
"""

import copy
import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.benchmarking import ways
from ldm.benchmarking.limits import copy_bandwidth, count_flops, matrix_rate
from ldm.benchmarking.measuring import exact_float32, in_own_process, machine, places, psnr, row_failed
from ldm.benchmarking.models import check_painting, load_model, read_task
from ldm.benchmarking.sampling import GUIDANCE, SamplingRow, adapt, paint
from ldm.device import autocast, choose_device, peak_memory
from ldm.errors import UserError
from ldm.files import written_whole
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.guidance import Guidance
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.denoiser import PreparedDenoiser
from ldm.pipeline.settings import Settings
from ldm.text import markdown_table

BF16 = {"precision": "bf16"}
FAST = {**BF16, "channels_last": True}
PAINTING_ROWS = (
    SamplingRow(
        "published: 250 steps of DDIM with fresh noise, all computed at every step, float32",
        way="published",
        fused_attention=False,
    ),
    SamplingRow("DPM-Solver++, 20 steps", way="unprepared", fused_attention=False),
    SamplingRow("+ bf16", way="unprepared", fused_attention=False, **BF16),
    SamplingRow("+ channels_last", way="unprepared", fused_attention=False, **FAST),
    SamplingRow("+ conditions prepared once", fused_attention=False, **FAST),
    SamplingRow("+ fused attention", **FAST),
    SamplingRow("+ compile", compile=True, **FAST),
    SamplingRow("+ CUDA graph of the whole picture", compile=True, record=True, **FAST),
    SamplingRow("CUDA graph without compile", record=True, **FAST),
    SamplingRow("CUDA graph without compile, fp16", record=True, precision="fp16", channels_last=True),
)
REFERENCE = 1  # its numbers are what the faster ways are compared with


@dataclass(frozen=True)
class TrainingWay:
    """A row of training: what it is called, and options of `training.TrainingRow`, which needs Lightning."""

    name: str
    options: dict[str, bool]


TRAINING_ROWS = (
    TrainingWay(
        "published: encoders in the step, attention recomputed, float32", {"recompute": True, "fused": False}
    ),
    TrainingWay("+ bf16", {"recompute": True, "fused": False, "bf16": True}),
    TrainingWay("+ no recomputing", {"fused": False, "bf16": True}),
    TrainingWay("+ cached latents", {"fused": False, "bf16": True, "cached": True}),
    TrainingWay("+ channels_last", {"fused": False, "bf16": True, "cached": True, "channels_last": True}),
    TrainingWay("+ fused AdamW", {"bf16": True, "cached": True, "channels_last": True}),
    TrainingWay("+ compile", {"bf16": True, "cached": True, "channels_last": True, "compile": True}),
)
ALL_ROWS = (*PAINTING_ROWS, *TRAINING_ROWS)
OUT_OF_MEMORY = {"seconds": None, "bytes": None}

Result = dict[str, Any]


class Results:
    """A folder of results, each a JSON file of its own, all with the same settings on the same machine.

    Raises UserError for a folder with those of others.
    """

    def __init__(self, args: Namespace):
        self.folder = args.output
        told = ("config", "checkpoint", "seed", "repeats", "published_steps")
        settings = {name: str(getattr(args, name)) for name in told} | {
            "machine": machine(choose_device(args.device))
        }
        if self.get("settings") not in (None, settings):
            raise UserError(
                f"{self.folder}: has results of another machine or of other options; choose another --output"
            )
        self.put("settings", settings)

    def get(self, name: str) -> Result | None:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def put(self, name: str, result: Result) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self.folder / f"{name}.json") as path:
            path.write_text(json.dumps(result))

    def or_measured(self, name: str, measure: Callable[[], Result]) -> Result:
        """What is there under this name, or else measured now."""
        result = self.get(name)
        if result is None:
            result = measure()
            self.put(name, result)
        return result

    def tensors(self, row: int) -> Path:
        """The file of a row's prediction and picture."""
        return self.folder / f"row-{row + 1}.pt"


def main(args: Namespace) -> None:
    check(args)
    results = Results(args)
    chosen = range(len(ALL_ROWS)) if args.rows is None else places(args.rows, len(ALL_ROWS))
    chosen = [n for n in chosen if can_run(ALL_ROWS[n], args)]
    if args.here:
        measure_rows(chosen, results, args)
        print("{}")
        return
    if not args.tables_only:
        results.or_measured("limits", partial(measure_limits, choose_device(args.device)))
        measure_in_processes(chosen, args)
    limits = results.get("limits")
    if limits is None:
        raise UserError(f"{args.output}: no results yet; measure first, without --tables-only")
    print_tables(chosen, results, limits, args)


def measure_in_processes(chosen: Sequence[int], args: Namespace) -> None:
    """Rows that fail together are tried one by one, and the others measured all the same. Raises UserError for the first that fails alone."""
    failed = []
    groups = processes_for(chosen, choose_device(args.device))
    for group in tqdm(groups, unit="process"):
        if not measured_together(group):
            failed += [n for n in group if len(group) == 1 or not measured_together([n])]
    if failed:
        raise row_failed(failed[0])


def measured_together(rows: Sequence[int]) -> bool:
    return in_own_process("--here", "--rows", *(str(n + 1) for n in rows)) is not None


def processes_for(rows: Sequence[int], device: torch.device) -> list[list[int]]:
    """Which rows share a process: on a GPU, whose peak memory can be reset, those of painting and those of training that do not compile."""
    if device.type != "cuda":
        return [[n] for n in rows]
    light = [n for n in rows if not compiles(ALL_ROWS[n])]
    shared = [[n for n in light if isinstance(ALL_ROWS[n], kind)] for kind in (SamplingRow, TrainingWay)]
    return [*filter(None, shared), *([n] for n in rows if n not in light)]


def compiles(row: SamplingRow | TrainingWay) -> bool:
    return row.compile if isinstance(row, SamplingRow) else row.options.get("compile", False)


def check(args: Namespace) -> None:
    """Raises UserError, before any work, for what cannot be measured."""
    for size in args.sizes:
        check_painting(Namespace(**{**vars(args), "size": size}))
    for name in ("batch_sizes", "training_batch_sizes"):
        if min(getattr(args, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not 1 <= args.published_steps <= ways.PUBLISHED_STEPS:
        raise UserError(
            f"--published-steps must be between 1 and {ways.PUBLISHED_STEPS}, got {args.published_steps}"
        )


def can_run(row: SamplingRow | TrainingWay, args: Namespace) -> bool:
    """CUDA graphs and fp16 are for GPUs."""
    painting = isinstance(row, SamplingRow)
    return choose_device(args.device).type == "cuda" or not (
        painting and (row.record or row.precision == "fp16")
    )


def measure_limits(device: torch.device) -> Result:
    """The machine's own: operations a second in float32 (without TF32) and bfloat16, bytes a second."""
    exact_float32()
    return {
        "fp32": matrix_rate(device, torch.float32),
        "bf16": matrix_rate(device, torch.bfloat16),
        "bytes": copy_bandwidth(device),
    }


def measure_rows(rows: Sequence[int], results: Results, args: Namespace) -> None:
    """In this process. The models that the rows copy stay on the CPU, so that the GPU's memory is the row's own."""
    painting, training = (
        [n for n in rows if isinstance(ALL_ROWS[n], kind)] for kind in (SamplingRow, TrainingWay)
    )
    if painting:
        model = load_model(args, torch.device("cpu"))
        for number in painting:
            measure_painting(number, own_copy(model, painting, args), results, args)
    if training:
        torch.manual_seed(0)
        model = training_module().build(args.config)
        for number in training:
            measure_training(number, model, results, args)


def own_copy(model: DualCondModel, rows: Sequence[int], args: Namespace) -> DualCondModel:
    """The model for one of these rows, on the device; a single row may have the model itself."""
    return (copy.deepcopy(model) if len(rows) > 1 else model).to(choose_device(args.device))


# Painting


def shapes(args: Namespace) -> list[tuple[int, int]]:
    """(pictures at once, their side)."""
    return [(batch, size) for size in args.sizes for batch in args.batch_sizes]


def measure_painting(number: int, model: DualCondModel, results: Results, args: Namespace) -> None:
    row = PAINTING_ROWS[number]
    exact_float32()
    for size in args.sizes:
        results.or_measured(
            f"work-{size}", lambda size=size: count_work(model, task_of(model, 1, size, args))
        )
    adapt(model, row)
    if not results.tensors(number).is_file():
        with written_whole(results.tensors(number)) as path:
            torch.save(accuracy_tensors(model, row, task_of(model, 1, args.sizes[0], args)), path)
    for batch, size in shapes(args):
        results.or_measured(
            f"row-{number + 1}-{batch}x{size}", partial(time_painting, model, row, batch, size, args)
        )


def recorder_of(row: SamplingRow) -> Recorder | None:
    """A new one for each measurement: what others have recorded keeps its memory."""
    return Recorder() if row.record else None


def task_of(model: DualCondModel, batch: int, size: int, args: Namespace) -> ways.Task:
    return read_task(Namespace(**{**vars(args), "size": size}), model, batch, GUIDANCE)


def count_work(model: DualCondModel, task: ways.Task) -> Result:
    """Operations for one picture: of each step, and of encoding and decoding. Bytes of the weights that a step reads in float32."""
    one, two = (
        count_flops(partial(ways.prepared, model, task, Settings(look="fast", steps=steps), "fp32"))
        for steps in (1, 2)
    )
    weights = sum(
        weight.numel() * weight.element_size() for weight in model.model.diffusion_model.parameters()
    )
    return {"step": two - one, "rest": one - (two - one), "weights": weights}


@torch.no_grad()
def accuracy_tensors(model: DualCondModel, row: SamplingRow, task: ways.Task) -> dict[str, Tensor]:
    """A guided prediction from random inputs, and the picture."""
    recorder = recorder_of(row)
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.channels, model.image_size, model.image_size)
    x, content = (torch.randn(shape, generator=generator).to(model.device) for _ in range(2))
    style = torch.rand(1, model.null_style_vector.weight.shape[1], generator=generator).to(model.device)
    guidance, timestep = (
        Guidance.of([GUIDANCE[0]], [GUIDANCE[1]], device=model.device),
        model.num_timesteps // 2,
    )

    def predict(x: Tensor, content: Tensor, style: Tensor) -> Tensor:
        with autocast(model.device, row.precision):
            return PreparedDenoiser(model, content, style, guidance, [timestep], model.image_size)(
                x, timestep
            ).float()

    inputs = {"x": x, "content": content, "style": style}
    prediction = predict(**inputs) if recorder is None else recorder(predict, inputs, "prediction")
    tensors = {"prediction": prediction.cpu()}
    if row.comparable:
        tensors["picture"] = paint(model, task, row, ways.PUBLISHED_STEPS, recorder)[0].float().cpu()
    return tensors


def time_painting(model: DualCondModel, row: SamplingRow, batch: int, size: int, args: Namespace) -> Result:
    """Median seconds a picture, peak memory in bytes; both None where it is not enough."""
    try:
        task, recorder, seconds = task_of(model, batch, size, args), recorder_of(row), []
        with without_peak_before(model.device):
            for _ in range(2 + args.repeats):
                seconds.append(paint(model, task, row, args.published_steps, recorder)[1])
            return {
                "seconds": sorted(seconds[2:])[args.repeats // 2] / batch,
                "bytes": peak_memory(model.device),
            }
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY


@contextmanager
def without_peak_before(device: torch.device) -> Iterator[None]:
    """Within it, `peak_memory` is of what happens within it, on CUDA."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield


# Training


def training_module() -> Any:
    """Only where it is needed: the rows of painting do not load Lightning."""
    return import_module("ldm.benchmarking.training")


def measure_training(number: int, model: DualCondModel, results: Results, args: Namespace) -> None:
    training, way = training_module(), TRAINING_ROWS[number - len(PAINTING_ROWS)]
    for batch in args.training_batch_sizes:
        here = Namespace(device=args.device, batch_size=batch, steps=args.repeats)
        row = training.TrainingRow(way.name, **way.options)
        results.or_measured(f"row-{number + 1}-{batch}", partial(time_training, training, row, model, here))


def time_training(training: Any, row: Any, model: DualCondModel, args: Namespace) -> Result:
    """What `training.measure` tells, and the operations that the step of one picture takes, recomputing not counted."""
    device = choose_device(args.device)
    try:
        with without_peak_before(device):
            result = training.measure(row, copy.deepcopy(model).to(device), args)
        once = Namespace(batch_size=1, steps=1)
        work = count_flops(
            partial(
                training.measure,
                replace(row, compile=False, recompute=False),
                copy.deepcopy(model).to(device),
                once,
            )
        )
        return result | {"work": work / (training.WARM_UP + once.steps)}
    except UserError as error:
        if "memory" not in str(error):
            raise
        return OUT_OF_MEMORY


# The tables


def print_tables(chosen: Sequence[int], results: Results, limits: Result, args: Namespace) -> None:
    weights = "random weights" if args.checkpoint == "random" else f"weights {args.checkpoint}"
    print(
        f"{Path(args.config).name}, {weights}, {machine(choose_device(args.device))}, medians of {args.repeats} runs"
    )
    print(
        f"matrix products: {limits['fp32'] / 1e12:.3g} TFLOP/s in float32, {limits['bf16'] / 1e12:.3g} in bf16; "
        f"copies: {limits['bytes'] / 1e9:.3g} GB/s, read and written\n"
    )
    painting = [n for n in chosen if n < len(PAINTING_ROWS)]
    if painting:
        print(
            f"Against {PAINTING_ROWS[REFERENCE].name} in float32: one guided prediction from random inputs, and a picture\n"
        )
        rows = [[PAINTING_ROWS[n].name, *accuracy(n, results)] for n in painting]
        print(markdown_table(["way", "relative error of a prediction", "PSNR of the picture"], rows))
    for batch, size in shapes(args) if painting else ():
        print(
            f"\n{size} x {size} pixels, {batch} at once, scales {GUIDANCE[0]:g} and {GUIDANCE[1]:g}, encoding and decoding included\n"
        )
        rows = [[PAINTING_ROWS[n].name, *painting_cells(n, batch, size, results, limits)] for n in painting]
        head = [
            "way",
            "ms per picture",
            "pictures/s",
            "times the first",
            "share of the bf16 matrix rate",
            "reading weights, share of copies",
            "peak memory",
        ]
        print(markdown_table(head, rows))
    training = [n for n in chosen if n >= len(PAINTING_ROWS)]
    for batch in args.training_batch_sizes if training else ():
        print(f"\nTraining, batch {batch}\n")
        rows = [[ALL_ROWS[n].name, *training_cells(n, batch, results, limits)] for n in training]
        print(
            markdown_table(
                [
                    "way",
                    "images/s",
                    "times the first",
                    "share of the bf16 matrix rate",
                    "peak memory",
                    "loss of step 1",
                ],
                rows,
            )
        )


def accuracy(number: int, results: Results) -> list[str]:
    files = [results.tensors(n) for n in (number, REFERENCE)]
    if not all(file.is_file() for file in files):
        return ["not run"] * 2
    own, wanted = (torch.load(file, weights_only=True) for file in files)
    error = (own["prediction"] - wanted["prediction"]).norm() / wanted["prediction"].norm()
    return [
        f"{error:.2g}",
        f"{psnr(own['picture'], wanted['picture']).item():.1f}" if "picture" in own else "random",
    ]


def painting_cells(number: int, batch: int, size: int, results: Results, limits: Result) -> list[str]:
    own, first = (results.get(f"row-{n + 1}-{batch}x{size}") for n in (number, 0))
    work = results.get(f"work-{size}")
    row = PAINTING_ROWS[number]
    if own is None or own["seconds"] is None:
        return [*["out of memory" if own else "not run"] * 2, *["-"] * 4]
    seconds = own["seconds"]
    shares = ["?", "?"]
    if work is not None:
        steps = ways.PUBLISHED_STEPS if row.way == "published" else Settings(look="fast").number_of_steps
        weights = work["weights"] * (1 if row.precision == "fp32" else 0.5) / batch
        shares = [
            f"{(work['rest'] + steps * work['step']) / seconds / limits['bf16']:.1%}",
            f"{steps * weights / seconds / limits['bytes']:.1%}",
        ]
    return [f"{1000 * seconds:.3g}", f"{1 / seconds:.3g}", times(first, seconds), *shares, gigabytes(own)]


def training_cells(number: int, batch: int, results: Results, limits: Result) -> list[str]:
    own, first = (results.get(f"row-{n + 1}-{batch}") for n in (number, len(PAINTING_ROWS)))
    if own is None or own["seconds"] is None:
        return ["out of memory" if own else "not run", *["-"] * 4]
    rate = batch / own["seconds"]
    return [
        f"{rate:.4g}",
        times(first, own["seconds"]),
        f"{rate * own['work'] / limits['bf16']:.1%}",
        gigabytes(own),
        f"{own['loss']:.4f}",
    ]


def times(first: Result | None, seconds: float) -> str:
    return "?" if first is None or first["seconds"] is None else f"{first['seconds'] / seconds:.1f}"


def gigabytes(result: Result) -> str:
    return f"{result['bytes'] / 1e9:.1f} GB" if result["bytes"] else "not known"
