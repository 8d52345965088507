"""Paint a photo in the style of a painting.

    python scripts/stylize.py --content photo.jpg --style painting.jpg --output result.png
    python scripts/stylize.py --content photo.jpg --style painting.jpg --output freer.png --content-scale 0.7 --style-scale 1.5
    python scripts/stylize.py --content photo.jpg --style painting.jpg --output other.png --checkpoint my_model.safetensors --config my_model.yaml
"""

import argparse

from ldm.cli import ArgumentParser, run
from ldm.device import DEVICES, PRECISIONS
from ldm.images import check_output, load_image, save_image
from ldm.pipeline import SAMPLERS, Settings, StyleTransferPipeline


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--content", required=True, metavar="FILE", help="the picture that says what to paint")
    parser.add_argument("--style", required=True, metavar="FILE", help="the picture that says how")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the result goes (.png or .jpg)")
    parser.add_argument("--checkpoint", default="mini", metavar="mini|PATH", help="the bundled model (default) or a checkpoint file")
    parser.add_argument("--config", metavar="YAML", help="the checkpoint's config (default: that of the published model)")
    parser.add_argument("--content-scale", type=float, default=1.0, help="guidance by the content: more keeps to the photo (default: 1)")
    parser.add_argument("--style-scale", type=float, default=1.0, help="guidance by the style: more is more painterly (default: 1)")
    parser.add_argument("--sampler", default="ddim", choices=SAMPLERS, help="default: ddim")
    parser.add_argument("--steps", type=int, help="sampling steps (default: 50)")
    parser.add_argument("--eta", type=float, default=0.0, help="0 is deterministic, 1 as noisy as DDPM (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same picture (default: 0)")
    parser.add_argument("--size", type=int, default=256, help="shorter side of the result, a multiple of 16 (default: 256)")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="auto: bf16 on GPUs that have it, else fp32")
    parser.add_argument("--allow-target", action="append", default=[], metavar="PREFIX", help="also build classes that the config names under this dotted prefix")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    output = check_output(args.output)
    content, style = load_image(args.content), load_image(args.style)
    options = {name: getattr(args, name) for name in ("content_scale", "style_scale", "sampler", "steps", "eta", "size", "seed")}
    Settings(**options).check()  # before the weights are read; the pipeline checks again by the model's own numbers
    pipeline = StyleTransferPipeline.from_pretrained(args.checkpoint, args.config, args.device, args.precision, args.allow_target)
    save_image(pipeline(content, style, progress=True, **options), output)
    print(output)


if __name__ == "__main__":
    run(main)
