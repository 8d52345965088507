"""The sub-commands of `artfusion`: where each is, and its script in a clone. Nothing is imported
until one of them is run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """module: with the command's `main`. script: in a clone, the same. leave_at_once: see
    `ldm.program.run`."""

    module: str
    script: str | None
    help: str
    leave_at_once: bool = False


COMMANDS = {
    "stylize": Command(
        "ldm.cli.stylize", "scripts/stylize.py", "paint photos in the style of paintings", leave_at_once=True
    ),
    "video": Command("ldm.cli.video", "scripts/stylize_video.py", "paint a video or an animated picture"),
    "web": Command("ldm.cli.web", None, "a page to paint on, in your browser"),
    "grid": Command(
        "ldm.cli.grid", "scripts/guidance_grid.py", "one photo at every pair of guidance scales, on a sheet"
    ),
    "styles": Command("ldm.cli.styles", None, "the styles that come along, or your saved ones, on a sheet"),
    "style save": Command("ldm.cli.save_style", None, "one style of any number of pictures, in a file"),
    "samples": Command(
        "ldm.cli.samples", "scripts/sample_styles.py", "what the model makes of paintings without any photo"
    ),
    "interpolate": Command(
        "ldm.cli.interpolate", "scripts/interpolate_styles.py", "one photo on the way from a style to another"
    ),
    "demo": Command(
        "ldm.cli.demo", "scripts/demo.py", "the bundled photos in the bundled styles, on a sheet"
    ),
    "train": Command("ldm.cli.train", "main.py", "train a model from config files"),
    "train-bundled": Command(
        "ldm.cli.train_bundled",
        "scripts/train_bundled.py",
        "train the bundled model, or one like it, on two folders of pictures",
    ),
    "cache": Command(
        "ldm.cli.cache",
        "scripts/precompute_latents.py",
        "compute latents and style statistics for training, once",
    ),
    "classes": Command(
        "ldm.cli.classes", "scripts/sample_classes.py", "samples of a class-conditional model"
    ),
    "evaluate": Command(
        "ldm.cli.evaluate", "scripts/evaluate.py", "measure results: content, style, whose style it is"
    ),
    "benchmark": Command(
        "ldm.cli.benchmark", "scripts/benchmark.py", "how fast this machine trains and paints"
    ),
    "checkpoint verify": Command(
        "ldm.cli.verify", "scripts/verify_checkpoint.py", "what a checkpoint is, and whether it is whole"
    ),
    "checkpoint convert": Command(
        "ldm.cli.convert", "scripts/convert_checkpoint.py", "a checkpoint for painting alone, much smaller"
    ),
    "info": Command("ldm.cli.info", None, "versions, devices, and where the bundled files are"),
}
