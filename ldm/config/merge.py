"""Config files and command-line overrides as one tree of keys that all exist."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.factory import get_obj_from_str, load_config
from ldm.config.interpolations import resolver_in
from ldm.errors import ConfigError, did_you_mean
from ldm.files import ROOT, own_or

TOP_KEYS = ("model", "data", "lightning")


def merged_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> DictConfig:
    """Config files merged from left to right, then `key.sub=value` overrides. Raises ConfigError.

    A file may begin with `extends: FILE`, a config beside it or below that it is merged onto. A node that
    names another `target` than the one it is merged onto replaces it whole, since its parameters
    are those of another class; a subclass keeps them.
    """
    tree: dict[str, Any] = {}
    for part in [*map(_tree, paths), _overrides(overrides)]:
        tree = _merge(tree, part)
    check_keys(tree, TOP_KEYS, "the top level")
    for key in ("model", "data"):
        if key not in tree:
            raise ConfigError(f"the config has no `{key}` section")
    return _with_looked_up(OmegaConf.create(tree), overrides)


def typed_keys(overrides: Sequence[str]) -> dict[str, Any]:
    """The values that overrides give, by their whole dotted keys. Raises ConfigError."""
    return dict(_leaves(_overrides(overrides)))


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _with_looked_up(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config with the values of what overrides ask of resolvers that files may not use. A run
    keeps its config in a file."""
    for key, text in typed_keys(overrides).items():
        if isinstance(text, str) and resolver_in(text):
            try:
                OmegaConf.update(config, key, OmegaConf.select(config, key))
            except OmegaConfBaseException as error:
                raise ConfigError(f"{key}={text}: {str(error).splitlines()[0]}") from error
    return config


def check_keys(section: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises ConfigError for a key that the section does not have."""
    for key in section:
        if key not in known:
            raise ConfigError(
                f"unknown config key {key!r}{did_you_mean(key, known)}; {where} has {', '.join(known)}"
            )


def _tree(path: str | Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file as plain containers, interpolations as they are, merged onto what it
    extends."""
    tree = _containers(load_config(path))
    base = tree.pop("extends", None)
    if base is None:
        return tree
    here = own_or(path).resolve()
    if here in inside:
        raise ConfigError(f"config {path}: extends itself")
    inside = (*inside, here)
    return dict(_merge(_tree(_extended(path, base, inside), inside), tree))


def _extended(path: str | Path, base: Any, inside: Sequence[Path]) -> Path:
    """The file that a config extends: one of this project's, or one in the folder of the config
    that was asked for, or below. Raises ConfigError."""
    if not isinstance(base, str):
        raise ConfigError(f"config {path}: `extends` must be the name of a file, got {base!r}")
    found = (inside[-1].parent / base).resolve()
    if not any(found.is_relative_to(folder) for folder in (inside[0].parent, ROOT / "configs")):
        raise ConfigError(
            f"config {path}: extends {base}, which lies outside of {inside[0].parent}; give both files, --base {found} {path}"
        )
    return found


def _containers(config: Any) -> dict[str, Any]:
    """A config as plain containers, interpolations as they are."""
    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))


def _merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)) or not _takes_params_of(
        new.get("target", old.get("target")), old.get("target")
    ):
        return new
    return {**old, **{key: _merge(old[key], value) if key in old else value for key, value in new.items()}}


def _takes_params_of(new: Any, old: Any) -> bool:
    """Whether the parameters of one target suit the other: it is the same, or a class made from
    it."""
    if new == old:
        return True
    try:
        return issubclass(get_obj_from_str(new), get_obj_from_str(old))
    except (ConfigError, TypeError):  # not a class of ours; building it will say what is wrong with it
        return False


def _overrides(items: Sequence[str]) -> dict[str, Any]:
    bad = [item for item in items if "=" not in item]
    if bad:
        raise ConfigError(f"{bad[0]!r} is not an override; write key.sub=value")
    keys = [item.partition("=")[0] for item in items]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{twice} is given {keys.count(twice)} times; give it once (and in quotes if it has braces, which a shell expands)"
        )
    try:
        return _containers(OmegaConf.from_dotlist(list(items)))
    except Exception as error:  # PyYAML's own errors
        raise ConfigError(f"an override's value is not valid YAML: {error}") from error
