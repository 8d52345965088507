"""Is what this machine's device computes right? Against the published model's golden numbers, and
against float32 on the CPU.

    python benchmarks/gpu_check.py --output check.json

For every number format: the published model's prediction and a guided run of four steps, on the
weights and inputs of tests/golden; a picture by the bundled model in either look, painted twice.
Each number is in the file as soon as it is known. With --tiny the reduced golden model and small
pictures.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.device import autocast, choose_device
from ldm.files import ROOT, check_folder, written_whole
from ldm.media.tensors import image_to_tensor
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.pipeline.pipeline import StyleTransferPipeline
from ldm.program import ArgumentParser, run

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
from golden_rules import GOLDEN, conditions, full_model, sample, tiny_model

from benchmarks.measuring import exact_float32, machine, psnr

FORMATS = {"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16")}
TWO_WAY = (0.6, 2.0)  # the content and the style scale of the golden run
PHOTO, PAINTING = (
    ROOT / "data/contents/astronaut.jpg",
    ROOT / "data/styles/van_gogh_wheat_field_with_cypresses.jpg",
)


class Findings:
    """What has been found, in a JSON file, each as soon as it is."""

    def __init__(self, path: Path):
        self.path, self.values = path, {}

    def add(self, name: str, value: Any) -> None:
        self.values[name] = value
        with written_whole(self.path) as aside:
            aside.write_text(json.dumps(self.values, indent=1))
        print(f"{name}: {value}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the JSON file to write")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="the reduced model and small pictures")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = choose_device(args.device)
    check_folder(args.output.parent)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    exact_float32()
    findings = Findings(args.output)
    findings.add("machine", machine(device))
    for look in ("sampled", "fast", "fine"):
        check_look(look, device, findings, size=64 if args.tiny else 256)
    check_golden(device, findings, args.tiny)


def formats(device: torch.device) -> tuple[str, ...]:
    return FORMATS.get(device.type, FORMATS["cpu"])


# The published model


def check_golden(device: torch.device, findings: Findings, tiny: bool) -> None:
    """Relative errors, the published arrays being right."""
    model, data = (
        (tiny_model() if tiny else full_model()),
        np.load(GOLDEN / ("tiny.npz" if tiny else "kl16_content12_full.npz")),
    )
    model.to(device).requires_grad_(False)
    for precision in formats(device):
        with torch.no_grad(), autocast(device, precision):
            found = {
                "prediction": (prediction(model, data), data["unet_out"]),
                "guided run": (sample(model, data, 6 if tiny else 4, *TWO_WAY), data["ddim_two_way_0.6_2"]),
            }
        for name, (actual, expected) in found.items():
            wanted = torch.from_numpy(expected)
            findings.add(
                f"golden {name}, {precision}: relative error",
                float((actual.float().cpu() - wanted).norm() / wanted.norm()),
            )


def prediction(model: DualCondModel, data: Any) -> Tensor:
    x, t = (torch.from_numpy(data[name]).to(model.device) for name in ("x_T", "t"))
    return model.apply_model(x, t, conditions(model, data)[0])


# The bundled model


def check_look(look: str, device: torch.device, findings: Findings, size: int) -> None:
    """PSNR of a picture, float32 on the CPU being right; whether the second is the first, bit for
    bit; seconds of the second."""
    settings = {"look": look, "size": size}
    expected = painted(StyleTransferPipeline.from_pretrained(device="cpu", precision="fp32"), settings)
    for precision in formats(device):
        pipeline = StyleTransferPipeline.from_pretrained(device=str(device), precision=precision)
        one, began = painted(pipeline, settings), time.perf_counter()
        again, seconds = painted(pipeline, settings), time.perf_counter() - began
        kind = f"{look} picture of {size} px, {precision}"
        findings.add(f"{kind}: PSNR", float(psnr(one, expected)))
        findings.add(f"{kind}: the same twice", bool(torch.equal(one, again)))
        findings.add(f"{kind}: seconds", round(seconds, 3))


def painted(pipeline: StyleTransferPipeline, settings: dict[str, Any]) -> Tensor:
    """(1, 3, H, W) in [-1, 1], on the CPU."""
    return image_to_tensor(pipeline(PHOTO, PAINTING, **settings))[None]


if __name__ == "__main__":
    run(main)
