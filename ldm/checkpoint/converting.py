"""A training checkpoint made one for inference: its EMA weights alone, and no more of them than
needed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint.carried import carried, carries_config, config_of, config_of_run
from ldm.checkpoint.describing import Report, describe
from ldm.checkpoint.ema import bake_ema, inference_only
from ldm.checkpoint.fitting import forgive_missing_ema, mismatch_with, published_config
from ldm.checkpoint.loading import Mismatch, without
from ldm.checkpoint.reading import read_state_dict
from ldm.checkpoint.writing import save_safetensors
from ldm.errors import CheckpointError, UserError
from ldm.files import file_hash
from ldm.text import human_size


def convert(
    source: Path, output: Path, leave_out: Sequence[str], keep_live: bool, half: bool,
    config: str | Path | None, without_training: Callable[[dict[str, Any]], None],
) -> str:  # fmt: skip
    """Write the .safetensors file of a checkpoint, with its config in it; what was done, in a line.

    leave_out: beginnings of names. keep_live: the live weights instead of the EMA. half: in
    float16. config: None is the one that the source carries, that of its run, or the published
    model's; where none fits, the file carries none. without_training: as in `mismatch_with`. Raises
    CheckpointError for a checkpoint that is not whole or finite or does not fit the config that is
    given, and UserError for a beginning that no name has.
    """
    report = describe(source)
    if report.nonfinite:
        raise CheckpointError(f"{source}: NaN or infinite values in {', '.join(list(report.nonfinite)[:5])}")
    tensors = read_state_dict(source)

    def differing(other: Path) -> Mismatch:
        return forgive_missing_ema(mismatch_with(other, tensors, without_training))

    found = _fitting_config(source, config, published_config(tensors), differing)
    weights, tensors = _choose_weights(_leaving_out(leave_out, tensors), keep_live)
    words = _metadata(source, report, weights) | (carried(config_of(found)) if found else {})
    save_safetensors(tensors, output, words, half)
    told = (
        f"with the config {_told(found, source)}"
        if found
        else "without a config: give --config to paint with it"
    )
    return (
        f"{output}: {human_size(output.stat().st_size)}, {len(tensors)} tensors ({weights}), {told}, "
        f"made from {source}: {human_size(report.size)}, {report.tensors} tensors"
    )


def _fitting_config(
    source: Path,
    given: str | Path | None,
    published: Path | None,
    differing: Callable[[Path], Mismatch],
) -> Path | None:
    """The config that goes with the weights. Raises CheckpointError where the given one does not
    fit."""
    if given is not None:
        mismatch = differing(Path(given))
        if mismatch:
            raise CheckpointError(f"{source} does not fit {given}: {mismatch}")
        return Path(given)
    own = source if carries_config(source) else None
    for config in (own, config_of_run(source), published):
        if config is not None and not _unfit(config, differing):
            return config
    return None


def _unfit(config: Path, differing: Callable[[Path], Mismatch]) -> bool:
    try:
        return bool(differing(config))
    except UserError:  # of code that has to be allowed, for one
        return True


def _told(config: Path, source: Path) -> str:
    return "that was in it" if config == source else str(config)


def _leaving_out(prefixes: Sequence[str], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Raises UserError for a prefix that no name has."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in state_dict):
            raise UserError(
                f"--leave-out {prefix}: no name begins so; `artfusion checkpoint verify` lists them"
            )
    return without(state_dict, tuple(prefixes))


def _choose_weights(state_dict: dict[str, Tensor], keep_live: bool) -> tuple[str, dict[str, Tensor]]:
    """(which weights these are, in words; the tensors to keep)."""
    live = inference_only(state_dict)
    if keep_live:
        return "live weights", live
    baked = bake_ema(state_dict)
    replaced = any(baked[name] is not live[name] for name in baked)
    return ("EMA weights" if replaced else "its only weights: it has no EMA"), baked


def _metadata(source: Path, report: Report, weights: str) -> dict[str, str]:
    facts = {"global_step": report.global_step, "epoch": report.epoch}
    known = {name: str(value) for name, value in facts.items() if value is not None}
    return {
        "kind": report.kind,
        "weights": weights,
        "source": f"{source.name} sha256:{file_hash(source)}",
        **known,
    }
