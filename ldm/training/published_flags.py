"""What the published training command took and this one does not, as flags or in a config: mapped
to what it means here, or refused by a line that says so."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldm.errors import ConfigError, UserError

DEFAULT_SEED = 23
# What Lightning's Trainer takes: here, so that options are checked before it is imported.
TRAINER_FLAGS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks", "fast_dev_run",
    "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches",
    "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches",
    "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps",
    "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark", "inference_mode",
    "use_distributed_sampler", "profiler", "detect_anomaly", "barebones", "plugins", "sync_batchnorm",
    "reload_dataloaders_every_n_epochs", "default_root_dir", "enable_autolog_hparams", "model_registry",
)  # fmt: skip
# Those of Lightning 1.6's Trainer that its present one no longer has, and what to do instead.
_GONE = {
    "resume_from_checkpoint": "give --resume FILE",
    "distributed_backend": "give --strategy ddp, which is what several GPUs get anyway",
    "num_processes": "give lightning.trainer.devices=N, or start with torchrun",
    "tpu_cores": "give lightning.trainer.accelerator and lightning.trainer.devices",
    "ipus": "give lightning.trainer.accelerator and lightning.trainer.devices",
    "auto_select_gpus": "name the GPUs with --gpus",
    "replace_sampler_ddp": "leave it out: the loaders share the samples themselves",
    "progress_bar_refresh_rate": "give lightning.trainer.enable_progress_bar=false to have no bar",
    "process_position": "leave it out",
    "weights_summary": "give lightning.trainer.enable_model_summary=false to have none",
    "checkpoint_callback": "give lightning.trainer.enable_checkpointing=false to have none",
    "weights_save_path": "give --logdir DIR",
    "terminate_on_nan": "leave it out: a loss that is no number always ends the run",
    "flush_logs_every_n_steps": "leave it out",
    "log_gpu_memory": "leave it out: TensorBoard has the peak memory",
    "track_grad_norm": "leave it out",
    "prepare_data_per_node": "leave it out",
    "move_metrics_to_cpu": "leave it out",
    "multiple_trainloader_mode": "leave it out",
    "amp_backend": "give lightning.trainer.precision=16-mixed or bf16-mixed",
    "amp_level": "give lightning.trainer.precision=16-mixed or bf16-mixed",
    "auto_lr_find": "give model.learning_rate=VALUE",
    "auto_scale_batch_size": "give data.params.batch_size=N",
    "stochastic_weight_avg": "leave it out: the weights are averaged anyway (use_ema)",
}
# The command's own.
_REFUSED = {
    "-p": "--project: give --logdir DIR and --name NAME, or --resume DIR",
    "--project": "--project: give --logdir DIR and --name NAME, or --resume DIR",
    "-d": "--debug: run `python -m pdb -m ldm train ...`",
    "--debug": "--debug: run `python -m pdb -m ldm train ...`",
}
_STRATEGIES = ("dp", "ddp2", "ddp_spawn", "ddp_cpu", "ddp_sharded", "horovod")  # which were accelerators
_TRUE, _FALSE = ("true", "1", "yes", "y", "t"), ("false", "0", "no", "n", "f")
_OURS = {
    "default_root_dir": "give --logdir DIR",
    "callbacks": "give lightning.callbacks.NAME.target=CLASS",
    "logger": "give lightning.logger",
}


def translated(argv: Sequence[str]) -> list[str]:
    """The arguments with Trainer flags as overrides (`--max_epochs 5` as
    lightning.trainer.max_epochs=5), and without those that say what is done anyway. Raises
    UserError for flags that have another name now, or none."""
    result, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        flag, given, value = argument.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        if flag in _REFUSED:
            raise UserError(_REFUSED[flag])
        if name in _GONE or name in _OURS:
            raise UserError(f"--{name}: {_GONE.get(name) or _OURS[name]}")
        if argument in ("-t", "--train"):
            result += [argument, _value(rest)]  # else it would take the override that the next flag becomes
        elif name in ("no_test", "scale_lr"):
            _check_switch(name, value if given else _value(rest))
        elif name in TRAINER_FLAGS:
            result.append(f"lightning.trainer.{name}={value if given else _value(rest)}")
        else:
            result.append(argument)
    return result


def gpu_devices(gpus: Any) -> int | list[int]:
    """What Lightning 1.6 takes `gpus` for: numbers where there is a comma or a list, "0,1" or "0,";
    else how many, -1 being all. Raises UserError."""
    text = ",".join(map(str, gpus)) + "," if isinstance(gpus, (list, tuple)) else str(gpus)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text.strip() == "-1":
        return -1
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(
            f"--gpus takes numbers such as 0,1 (or 0, for the first GPU), how many, or -1 for all; got {gpus!r}"
        )
    if "," in text:
        return [int(part) for part in parts]
    if parts == ["0"]:
        raise UserError(
            "--gpus 0 is no GPU, as in Lightning 1.6: give `--gpus 0,` for the first one, or --accelerator cpu to train without"
        )
    return int(parts[0])


def present_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """A config's `lightning.trainer` without the keys of Lightning 1.6 that say what is done
    anyway. Raises ConfigError for those that have another name now, or none."""
    options = dict(given)
    for key in ("accelerator", "distributed_backend"):  # the published command itself sets the first to ddp
        if options.get(key) == "ddp":
            del options[key]  # what several devices get anyway
        elif options.get(key) in _STRATEGIES:
            raise ConfigError(
                f"lightning.trainer.{key}: give lightning.trainer.strategy=ddp, which is what several GPUs get anyway"
            )
    if any(word in str(options.get("strategy")) for word in ("spawn", "fork", "notebook")):
        raise ConfigError(
            "lightning.trainer.strategy: give ddp; processes that are not started anew cannot say what they have trained"
        )
    for key in options:
        if key in _GONE or key in ("callbacks", "default_root_dir"):
            raise ConfigError(f"lightning.trainer.{key}: {_GONE.get(key) or _OURS[key]}")
    return options


def _value(rest: list[str]) -> str:
    """The flag's value, taken off the arguments after it; true where there is none."""
    return rest.pop(0) if rest and not _is_option(rest[0]) else "true"


def _is_option(text: str) -> bool:
    """Whether this is another option or an override, no value."""
    return bool(re.match(r"-\D", text)) or ("=" in text and "." in text.partition("=")[0])


def _check_switch(name: str, value: str) -> None:
    """--no-test says what is always so; --scale_lr only what it is when it is off."""
    if value.lower() not in (*_TRUE, *_FALSE):
        raise UserError(f"--{name}: expected true or false, got {value!r}")
    if name == "scale_lr" and value.lower() in _TRUE:
        raise UserError(
            "--scale_lr: give the learning rate itself as model.learning_rate=VALUE; it is never multiplied"
        )
