"""Config files and command-line overrides as one tree of keys that all exist."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ldm.config.factory import get_obj_from_str, load_config
from ldm.errors import ConfigError, did_you_mean
from ldm.files import own_or

TOP_KEYS = ("model", "data", "lightning")


def merged_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> DictConfig:
    """Config files merged from left to right, then `key.sub=value` overrides. Raises ConfigError.

    A file may begin with `extends: FILE`, a config beside it that it is merged onto. A node that
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
    return OmegaConf.create(tree)


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
    return dict(_merge(_tree(here.parent / str(base), (*inside, here)), tree))


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
