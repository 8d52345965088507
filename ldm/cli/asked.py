"""What `artfusion stylize` is asked for: which photos in which styles, checked before the model is
read."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from ldm.checks import FACES, check_face_detector
from ldm.cli.manifest import read_manifest
from ldm.cli.options import masks_of, settings_of
from ldm.cli.painting import picture_options
from ldm.cli.reports import Streams
from ldm.cli.spreading import PACK_SIZE, shard_of
from ldm.errors import UserError
from ldm.media.packs import KINDS
from ldm.media.places import Place, key_of, place_of
from ldm.media.saved_styles import is_saved_style
from ldm.media.shards import shard_names
from ldm.pipeline.folders import distinct_names, expand
from ldm.pipeline.inputs import OneStyle, PictureReader, Style, StyleMix, StyleRegions
from ldm.pipeline.jobs import check_beside
from ldm.pipeline.library import check_no_saved_style
from ldm.pipeline.pairing import Pairing
from ldm.pipeline.parts import part_of
from ldm.pipeline.portions import AnyPortion, ShardPortion, packs_in, portions_of
from ldm.pipeline.provenance import files_of, paintings_of
from ldm.pipeline.settings import Settings
from ldm.pipeline.tasks import Task, check_inputs_survive, folder_of_results, plan, settings_of_tasks


@dataclass
class Asked:
    """tasks: what is to be painted. shards: photos that nobody has counted. named: all styles, by
    name."""

    args: argparse.Namespace
    tasks: Sequence[Task]
    named: dict[str, Style]
    shards: Sequence[ShardPortion] = ()

    @classmethod
    def by(cls, args: argparse.Namespace, streams: Streams) -> "Asked":
        """What parsed options ask for. Raises UserError."""
        settings = settings_of(args)
        if args.manifest is not None:
            tasks = read_manifest(args.manifest, settings, args.output, progress=not args.quiet)
            return cls(args, tasks, {task.style_name: task.style for task in tasks})
        given = [name for name in args.content if name.lower().endswith(".tar")]
        pictures = [name for name in args.content if name not in given]
        if given and not pictures and args.pack_size is not None:
            raise UserError("--pack-size is for single photos; each shard of photos makes one of results")
        shards = [shard for name in given for shard in sorted(glob(name)) or [name]]
        contents = expand(pictures, folder_of_results(args.output)) if pictures else []
        styles, pairing = named_styles(args), pairing_of(args, settings)
        if streams.writes:
            streams.check(len(list(pairing.pairs([(path.name, path) for path in contents], styles))))
        tasks = plan(contents, styles, args.output, settings, pairing) if contents else []
        portions = shard_portions(args, shard_names(shards), styles, pairing, settings) if shards else []
        return cls(args, tasks, dict(styles), portions)

    def portions(self) -> list[AnyPortion]:
        """All of it, as it is painted."""
        args = self.args
        pack = args.pack and (place_of(args.output or "."), args.pack, args.pack_size or PACK_SIZE)
        portions = [*portions_of(self.tasks, args.batch_size, shard_of(args)[1], pack), *self.shards]
        packs = [key_of(portion.pack) for portion in portions if portion.pack is not None]
        if len(set(packs)) < len(packs):
            raise UserError(
                "a shard of photos is called like the packs of single photos, part-00000 and so on, and would be lost; "
                "give it in a run of its own"
            )
        return portions

    def left_packs(self, portions: Sequence[AnyPortion]) -> list[Place]:
        """Packs of single photos that an earlier run, larger or of another kind, has left beside all those
        of this one. Raises UserError."""
        if not (self.args.pack and self.tasks):
            return []
        own = {key_of(portion.pack) for portion in portions if portion.pack is not None}
        folder = place_of(self.args.output or ".")
        kinds = dict.fromkeys((self.args.pack, *KINDS))
        found = [pack for kind in kinds for pack in packs_in(folder, kind)]
        return [pack for pack in found if key_of(pack) not in own]

    def inputs(self) -> list[str | Place]:
        """All files that are read."""
        given = [self.args.manifest, self.args.checkpoint, self.args.config]
        pictures = [path for task in self.tasks for path in (task.content, *files_of(task.style))]
        return [*others_of(self.args), *(path for path in given if path is not None), *pictures]

    def check(self) -> None:
        """Raises UserError, before the model is read, for a mask or palette that cannot be, or that
        a result would replace."""
        args = self.args
        if args.keep == FACES:
            check_face_detector()
        given, read = others_of(args), PictureReader()
        for path in given:
            check_no_saved_style(path)
            read(path)
        for settings in settings_of_tasks(self.tasks).values():
            check_beside(settings, args.palette_from, args.not_style)
        saved = [path for style in self.named.values() for path in files_of(style) if is_saved_style(path)]
        if args.style_region is not None and saved:
            raise UserError(f"--style-region is a part of a picture; {saved[0]} is a saved style")
        check_inputs_survive([task.output for task in self.tasks], given)
        if isinstance(args.style_region, str):
            _check_region(args.style_region, list(self.named.values()))


def others_of(args: argparse.Namespace) -> list[str]:
    """The pictures that are read besides photos and paintings."""
    return [*masks_of(args), *picture_options(args).values()]


def _check_region(mask: str, styles: Sequence[Style]) -> None:
    """Raises UserError for a mask that is not of the one painting."""
    paintings = {str(path): path for style in styles for path in paintings_of(style)}
    if len(paintings) > 1:
        raise UserError(
            f"--style-region {mask}: a mask is of one painting, and there are {len(paintings)}; give one of them, or four numbers"
        )
    for painting in paintings.values():
        part_of(painting, mask)


def pairing_of(args: argparse.Namespace, settings: Settings) -> Pairing:
    """Raises UserError."""
    pairing = Pairing(args.pair, args.per_content or 1, args.group_by, settings.each("seed", 1)[0])
    pairing.check()
    return pairing


def shard_portions(
    args: argparse.Namespace,
    names: Sequence[str],
    styles: Sequence[tuple[str, Style]],
    pairing: Pairing,
    settings: Settings,
) -> list[ShardPortion]:
    """A portion for each tar shard, whose pack is called like it. Raises UserError for options that
    take another look at the photos."""
    if not args.pack:
        raise UserError(f"{names[0]}: photos in tar shards need --pack tar or --pack parquet")
    if pairing.kind == "zip" or args.dry_run:
        option = "--dry-run" if args.dry_run else "--pair zip"
        raise UserError(f"{names[0]}: {option} is not for photos in tar shards, which nobody has counted")
    pairing.check_styles(len(styles))
    places, folder = [place_of(name) for name in names], place_of(args.output)
    packs = [folder / f"{name}.{args.pack}" for name in distinct_names(places)]
    check_inputs_survive(packs, places)
    return [
        ShardPortion(place, tuple(styles), pairing, pack, settings)
        for place, pack in zip(places, packs, strict=True)
    ]


def named_styles(args: argparse.Namespace) -> list[tuple[str, Style]]:
    """Every style with the name that its results get: single pictures, or all of them mixed or by
    region."""
    results = folder_of_results(args.output)
    paths = expand(args.style, results, styles=True)
    folders = [Path(folder) for folder in args.style_from or []]
    styles: list[OneStyle] = [*paths, *(StyleMix(expand([str(folder)], results)) for folder in folders)]
    if args.style_weights is not None and args.mask is not None:
        raise UserError("--style-weights and --mask do not go together; give one of them")
    named = [*paths, *map(whole_name, folders)]
    together = "+".join(path.stem for path in named)
    if args.style_weights is not None:
        mix = StyleMix(styles, args.style_weights)
        mix.shares()  # raises if they do not fit
        return [(together, mix)]
    if args.mask is not None:
        regions = StyleRegions(styles, args.mask)
        regions.check()
        return [(together, regions)]
    return list(zip(distinct_names(named), styles))


def whole_name(folder: Path) -> Path:
    """A folder's path, of which the last part is its name: that of `.` is that of where it is."""
    return Path(key_of(folder))
