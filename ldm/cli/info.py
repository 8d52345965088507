"""What a report of a problem needs: versions, devices, and where the bundled files are.

    artfusion info

Paste it below what went wrong. What the names of `--look` stand for:

    artfusion info looks
"""

import platform
from importlib import metadata

from ldm import __version__
from ldm.files import ROOT
from ldm.pipeline.bundled import resolve_checkpoint
from ldm.pipeline.looks import looks_table
from ldm.program import ArgumentParser, result_is_printed
from ldm.text import markdown_table

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "omegaconf", "numpy", "pillow", "safetensors")


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", nargs="?", choices=["looks"], help="looks: the table of the looks")
    args = parser.parse_args()
    result_is_printed()
    if args.what == "looks":
        head, *rows = looks_table()
        print(markdown_table(head, rows, 6))
        return
    import torch  # takes seconds

    from ldm.device import choose_device, choose_precision

    device = choose_device("auto")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    for name, value in {
        "artfusion": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES),
        "processors": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "GPUs": ", ".join(gpus) or "none",
        "paints on": f"{device.type}, in {choose_precision('auto', device)}",
        "bundled files": ROOT,
        "bundled model": resolve_checkpoint("mini", None)[0].relative_to(ROOT),
    }.items():
        print(f"{name + ':':<15} {value}")
