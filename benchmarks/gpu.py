"""Everything that a GPU is measured by: its own limits, how exact every fast path is, whole
pictures, training steps.

Each row runs in a process of its own, but on a GPU, where starting takes longer than measuring,
those that compile nothing share one.
Each number is written to --output as soon as it is there: a run that is stopped goes on where it
was.
"""

import copy
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import ways
from benchmarks.gpu_results import Result, Results
from benchmarks.gpu_tables import print_tables
from benchmarks.measuring import copy_bandwidth, count_flops, exact_float32, in_own_process, matrix_rate
from benchmarks.models import check_painting, load_model, read_task
from benchmarks.options import PUBLISHED_STEPS, GpuOptions
from benchmarks.rows import GPU, GPU_PAINTING, GPU_TRAINING, GUIDANCE, SamplingRow, TrainingRow
from benchmarks.sampling import adapt, paint
from ldm.device import autocast, choose_device, peak_memory
from ldm.errors import UserError
from ldm.files import written_whole
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.models.diffusion.guidance import Guidance
from ldm.pipeline.cuda_graphs import Recorder
from ldm.pipeline.denoiser import PreparedDenoiser
from ldm.pipeline.settings import Settings

OUT_OF_MEMORY: Result = {"seconds": None, "bytes": None}


def run(options: GpuOptions) -> None:
    check_painting(options, *options.sizes)
    results, device = Results(options), choose_device(options.device)
    names = rows_for(device, options.rows or [*GPU])
    if not options.tables_only:
        results.or_measured("limits", partial(measure_limits, device))
        measure_in_processes(names, options)
    if results.get("limits") is None:
        raise UserError(f"{options.output}: no results yet; measure first, without --tables-only")
    print_tables(names, results, options)


def rows_for(device: torch.device, names: Sequence[str]) -> list[str]:
    """The rows of these names, but for those that need CUDA graphs or fp16 where there are none."""
    return [name for name in names if device.type == "cuda" or not GPU[name].for_gpus]


def measure_in_processes(names: Sequence[str], options: GpuOptions) -> None:
    """Rows that fail together are tried one by one, and the others measured all the same. Raises
    UserError for the first that fails alone."""
    failed = []
    for group in tqdm(processes_for(names, choose_device(options.device)), unit="process"):
        error = _failure(group, options)
        alone = [_failure([name], options) for name in group] if error and len(group) > 1 else [error]
        failed += filter(None, alone)
    if failed:
        raise failed[0]


def _failure(names: Sequence[str], options: GpuOptions) -> UserError | None:
    try:
        in_own_process(", ".join(names), measure_rows, names, options)
    except UserError as error:
        tqdm.write(str(error), file=sys.stderr)
        return error
    return None


def processes_for(names: Sequence[str], device: torch.device) -> list[list[str]]:
    """Which rows share a process: on a GPU, whose peak memory can be reset, those of painting and
    those of training that do not compile."""
    if device.type != "cuda":
        return [[name] for name in names]
    light = [
        [name for name in names if name in kind and not kind[name].compile]
        for kind in (GPU_PAINTING, GPU_TRAINING)
    ]
    return [*filter(None, light), *([name] for name in names if GPU[name].compile)]


def measure_limits(device: torch.device) -> Result:
    """The machine's own: operations a second in float32 (without TF32) and bfloat16, bytes a
    second."""
    exact_float32()
    rates = {
        name: matrix_rate(device, dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    limits = {**rates, "bytes": copy_bandwidth(device)}
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the rows, which are other processes, shall have all memory
    return limits


def measure_rows(names: Sequence[str], options: GpuOptions) -> None:
    """In this process. The models that the rows copy stay on the CPU, so that the GPU's memory is
    the row's own."""
    results = Results(options)
    painting, training = ([name for name in names if name in kind] for kind in (GPU_PAINTING, GPU_TRAINING))
    if painting:
        model = load_model(options, torch.device("cpu"))
        for name in painting:
            own = copy.deepcopy(model) if len(painting) > 1 else model
            measure_painting(name, own, results, options)
    if training:
        from benchmarks.training import build  # here alone: it loads Lightning

        torch.manual_seed(0)
        model = build(options.config)
        for name in training:
            for batch in options.training_batch_sizes:
                measure = partial(time_training, GPU_TRAINING[name], model, batch, options)
                results.or_measured(f"{name}-{batch}", measure)


# Painting


def measure_painting(name: str, model: DualCondModel, results: Results, options: GpuOptions) -> None:
    exact_float32()
    row, model = GPU_PAINTING[name], model.to(choose_device(options.device))
    task = partial(read_task, options, model, scales=GUIDANCE)
    for size in options.sizes:
        results.or_measured(f"work-{size}", lambda size=size: count_work(model, task(1, size)))
    adapt(model, row)
    if not results.tensors(name).is_file():
        with written_whole(results.tensors(name)) as path:
            torch.save(accuracy_tensors(model, row, task(1, options.sizes[0])), path)
    for size, batch in product(options.sizes, options.batch_sizes):
        measure = partial(time_painting, model, row, partial(task, batch, size), options)
        results.or_measured(f"{name}-{batch}x{size}", measure)


def recorder_of(row: SamplingRow) -> Recorder | None:
    """A new one for each measurement: what others have recorded keeps its memory."""
    return Recorder() if row.record else None


def count_work(model: DualCondModel, task: ways.Task) -> Result:
    """Operations for one picture: of each step, and of encoding and decoding. Bytes of the weights
    that a step reads in float32."""
    one, two = (
        count_flops(partial(ways.prepared, model, task, Settings(look="sampled", steps=steps), "fp32"))
        for steps in (1, 2)
    )
    weights = (weight.numel() * weight.element_size() for weight in model.model.diffusion_model.parameters())
    return {"step": two - one, "rest": one - (two - one), "weights": sum(weights)}


@torch.no_grad()
def accuracy_tensors(model: DualCondModel, row: SamplingRow, task: ways.Task) -> dict[str, Tensor]:
    """A guided prediction from random inputs, and the picture."""
    recorder, generator = recorder_of(row), torch.Generator().manual_seed(0)
    shape = (1, model.channels, model.image_size, model.image_size)
    x, content = (torch.randn(shape, generator=generator).to(model.device) for _ in range(2))
    style = torch.rand(1, model.null_style_vector.weight.shape[1], generator=generator).to(model.device)
    guidance = Guidance.of([GUIDANCE[0]], [GUIDANCE[1]], device=model.device)
    timestep = model.num_timesteps // 2

    def predict(x: Tensor, content: Tensor, style: Tensor) -> Tensor:
        with autocast(model.device, row.precision):
            denoiser = PreparedDenoiser(model, content, style, guidance, [timestep], model.image_size)
            return denoiser(x, timestep).float()

    inputs = {"x": x, "content": content, "style": style}
    prediction = predict(**inputs) if recorder is None else recorder(predict, inputs, "prediction")
    tensors = {"prediction": prediction.cpu()}
    if row.comparable:
        tensors["picture"] = paint(model, task, row, PUBLISHED_STEPS, recorder)[0].float().cpu()
    return tensors


def time_painting(
    model: DualCondModel, row: SamplingRow, task: Callable[[], ways.Task], options: GpuOptions
) -> Result:
    """Median seconds a picture after two runs to warm up, peak memory in bytes; both None where it
    is not enough."""
    try:
        given, recorder = task(), recorder_of(row)
        with peak_memory_of_its_own(model.device):
            runs = [
                paint(model, given, row, options.published_steps, recorder)
                for _ in range(2 + options.repeats)
            ]
            seconds = statistics.median(seconds for _, seconds in runs[2:]) / len(given.seeds)
            return {"seconds": seconds, "bytes": peak_memory(model.device)}
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY


@contextmanager
def peak_memory_of_its_own(device: torch.device) -> Iterator[None]:
    """Within it, `peak_memory` is of what happens within it, on CUDA."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield


# Training


def time_training(row: TrainingRow, model: DualCondModel, batch: int, options: GpuOptions) -> Result:
    """What `training.measure` tells, and the operations that the step of one picture takes,
    recomputing not counted."""
    from benchmarks import training  # here alone: it loads Lightning

    device, plain = choose_device(options.device), replace(row, compile=False, recompute=False)
    try:
        with peak_memory_of_its_own(device):
            result = training.measure(row, copy.deepcopy(model).to(device), batch, options.repeats)
        work = count_flops(partial(training.measure, plain, copy.deepcopy(model).to(device), 1, 1))
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    return result | {"work": work / (training.WARM_UP + 1)}
