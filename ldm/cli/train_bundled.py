"""Train the bundled model, or one like it, on two folders of pictures: all phases in order, in as
many hours as there are.

    artfusion train-bundled --photos PHOTOS --paintings PAINTINGS --output mymodel --hours 24
    artfusion train-bundled --photos PHOTOS --paintings PAINTINGS --output better --hours 6 --phases cross

The second goes on from the bundled weights. Started again after Ctrl-C or a crash, the same command
does what is left. Each phase is a run of `artfusion train` in a folder of its own below --output,
with losses and pictures in it (tensorboard --logdir mymodel); the result is
mymodel/model.safetensors:

    artfusion stylize --checkpoint mymodel/model.safetensors --content photo.jpg --style painting.jpg --output result.png

  first      the first stage: a light autoencoder
  decoder    its decoder alone, for brush work
  diffusion  the model itself, on latents that are computed before it begins (minutes, which --hours does not count)
  cross      the same on photos in the styles of paintings, judged by VGG16; photos at half their size
  large      the same at full size

On a CPU of N cores, --processes N trains up to half as fast again as one process with N threads.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.data.splits import find_pictures
from ldm.early import STOPPED, TERMINATED, was_terminated
from ldm.errors import UserError
from ldm.files import ROOT, check_folder, written_whole
from ldm.pipeline.bundled import resolve_checkpoint
from ldm.program import ArgumentParser, at_least, own_command, own_environment
from ldm.training import FINISHED


@dataclass(frozen=True)
class Phase:
    """config: in configs/. share: of the time. on_gpu: what is different there, by dotted key."""

    config: str
    share: float
    on_gpu: Mapping[str, Any]


def batches_of(size: int, workers: int = 12) -> dict[str, Any]:
    """What a GPU needs not to idle, which would go through the config's batches in no time."""
    return {
        "data.params.batch_size": size,
        "data.params.num_workers": workers,
        "lightning.last.every_n_train_steps": 2000,
        "lightning.trainer.val_check_interval": 2000,
        "lightning.callbacks.images.params.increase_log_steps": False,
        "lightning.callbacks.images.params.batch_frequency": 2000,
    }


def pairs_of(size: int, rate: float) -> dict[str, Any]:
    """The same for pictures in other pictures' styles: each has so many crops, for memory is what
    they cost, and rates grow with the root of the batch."""
    train = "data.params.train.params"
    return {
        **batches_of(size),
        f"{train}.variants": 4,
        f"{train}.passes": 100,
        "model.learning_rate": rate,
        "model.params.record_steps": True,
    }


PHASES = {
    "first": Phase("mini_first_stage.yaml", 0.2, batches_of(64)),
    "decoder": Phase("mini_decoder.yaml", 0.05, batches_of(48)),
    "diffusion": Phase("mini_cached.yaml", 0.25, batches_of(256, workers=0)),
    "cross": Phase("mini_cross.yaml", 0.3, pairs_of(64, rate=7e-4)),
    "large": Phase("mini_large.yaml", 0.2, pairs_of(24, rate=4e-4)),
}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--photos", required=True, type=Path, metavar="DIR", help="folder of photos, of any depth"
    )
    parser.add_argument(
        "--paintings", required=True, type=Path, metavar="DIR", help="folder of paintings, of any depth"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of the runs and of the result"
    )
    parser.add_argument(
        "--hours", required=True, type=float, metavar="H", help="of training, all phases together"
    )
    parser.add_argument(
        "--phases",
        nargs="+",
        choices=PHASES,
        default=list(PHASES),
        metavar="PHASE",
        help=f"some of {', '.join(PHASES)} (default: all)",
    )
    parser.add_argument(
        "--start",
        default="mini",
        metavar="mini|FILE",
        help="weights of what is not trained here (default: the bundled ones)",
    )
    parser.add_argument(
        "--processes",
        type=at_least(1),
        default=1,
        metavar="N",
        help="of one thread each on a CPU, or one on each GPU (default: 1)",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    check(args)
    phases = [name for name in PHASES if name in args.phases]
    for name in phases:
        if (args.output / name / FINISHED).exists():
            continue
        if name == "diffusion":
            compute_latents(args)
        if not train(name, args):
            print(f"stopped in the phase {name!r}; the same command goes on from there", file=sys.stderr)
            return STOPPED
    if phases[-1] not in ("first", "decoder"):
        result = args.output / "model.safetensors"
        call(
            [
                "checkpoint convert",
                weights_of(phases[-1], args),
                str(result),
                "--half",
                "--leave-out",
                "vgg.",
                "--config",
                str(ROOT / "configs/mini.yaml"),
                "--force",
            ]
        )
    return 0


def check(args: argparse.Namespace) -> None:
    """Raises UserError for what cannot be, before anything is made."""
    if not 0 < args.hours < 1e5:
        raise UserError(f"--hours must be above 0, got {args.hours}")
    for folder in (args.photos, args.paintings):
        find_pictures(folder)
    start = resolve_checkpoint(args.start, None)[0]
    if not start.is_file():
        raise UserError(f"--start {args.start}: no such file")
    check_folder(args.output)


def train(name: str, args: argparse.Namespace) -> bool:
    """Train a phase to its end; whether it came there. Raises UserError where it failed."""
    folder = args.output / name
    if (folder / "checkpoints/last.ckpt").exists():
        options = ["--resume", str(folder)]
    else:
        settings = args.output / f"{name}.yaml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(settings) as aside:
            OmegaConf.save(settings_of(name, args), aside)
        options = [
            "--base",
            str(ROOT / "configs" / PHASES[name].config),
            str(settings),
            "--name",
            name,
            "--logdir",
            str(args.output),
        ]
    call(["train", *options], args.processes)
    return (folder / FINISHED).exists()


def settings_of(name: str, args: argparse.Namespace) -> DictConfig:
    """What a phase's run has beyond its config file."""
    from ldm.device import choose_device  # torch with it: after the options have been checked

    hours = args.hours * PHASES[name].share / sum(PHASES[each].share for each in args.phases)
    budget = {"target": "ldm.training.budget.TimeBudget", "params": {"hours": hours}}
    photos, paintings = str(args.photos.resolve()), str(args.paintings.resolve())
    data: Mapping[str, Any] = {"roots": [photos, paintings]}
    model: dict[str, Any] = {"scheduler_config": None}
    if name == "decoder":
        model["ckpt_path"] = weights_of("first", args)
    if name == "diffusion":
        data = {"cache": str((args.output / "cache").resolve())}
    if name in ("cross", "large"):
        data = {"style_root": paintings, "content_root": photos}
        model["ckpt_path"] = started_from(name, args)
    if name in ("diffusion", "cross", "large"):
        model["first_stage_config"] = {"params": {"ckpt_path": first_stage(args)}}
    settings = OmegaConf.create(
        {
            "model": {"params": model},
            "data": {"params": {"train": {"params": data}}},
            "lightning": {"trainer": {"max_steps": -1, "max_epochs": -1}, "callbacks": {"budget": budget}},
        }
    )
    if choose_device("auto").type == "cuda":
        for key, value in PHASES[name].on_gpu.items():
            OmegaConf.update(settings, key, value)
    return settings


def started_from(phase: str, args: argparse.Namespace) -> str:
    """The file of the weights that a phase of the model itself goes on from: those of the last
    phase before it that is trained here, or those to start from."""
    earlier = [name for name in ("diffusion", "cross") if name in args.phases and name != phase]
    return weights_of(earlier[-1] if earlier else "diffusion", args)


def weights_of(phase: str, args: argparse.Namespace) -> str:
    """The file of the weights that a phase ends with: its own, or, where it is not trained, those
    to start from."""
    if phase in args.phases:
        return str((args.output / phase / "checkpoints/last.ckpt").resolve())
    return str(resolve_checkpoint(args.start, None)[0].resolve())


def first_stage(args: argparse.Namespace) -> str:
    return weights_of("decoder" if "decoder" in args.phases else "first", args)


def compute_latents(args: argparse.Namespace) -> None:
    parts = [f"model.params.first_stage_config.params.ckpt_path={first_stage(args)}"]
    folders = [
        "--paintings",
        str(args.paintings),
        "--photos",
        str(args.photos),
        "--output",
        str(args.output / "cache"),
    ]
    call(["cache", "--config", str(ROOT / "configs/mini.yaml"), *folders, *parts], args.processes)


def call(command: list[str], processes: int = 1) -> None:
    """Run a sub-command of `artfusion` and wait for it. Raises UserError where it fails; it has
    said why."""
    several = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    threads = {"OMP_NUM_THREADS": "1"} if processes > 1 else {}
    with subprocess.Popen(
        own_command(*command, before=several), env={**threads, **own_environment()}
    ) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it writes its checkpoint first
            if was_terminated():  # a terminal would have told it, too
                process.terminate()
            code = process.wait()
    if code not in (0, STOPPED, TERMINATED):
        raise UserError(
            f"artfusion {command[0]} ended with exit code {code}, see above; mend that and give the same command again"
        )
