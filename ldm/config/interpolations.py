"""What a config file may look up while it is read: other values of the config, no more."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from ldm.errors import ConfigError

# Resolvers that only see the config itself. oc.env tells what is in the environment; oc.create and
# oc.decode make interpolations of text, and so any of these.
RESOLVERS = ("oc.select", "oc.dict.keys", "oc.dict.values")
_HARMLESS = re.compile(
    rf"\$\{{\s*[\w.\[\]-]*\s*\}}|\$\{{\s*(?:{'|'.join(map(re.escape, RESOLVERS))})\s*:[^{{}}$]*\}}"
)
_RESOLVER = re.compile(r"\$\{([^${}:]*):")


def check_resolvers(config: Any, where: str) -> None:
    """Raises ConfigError for an interpolation that does more than to look up a value in the config
    itself."""
    for key, text in _texts(OmegaConf.to_container(config, resolve=False)):
        resolver = resolver_in(text)
        if resolver is not None:
            raise ConfigError(
                f"{where}: {key} asks for ${{{resolver}:...}}, which a file may not ({', '.join(RESOLVERS)} it may); "
                "give the value on the command line, as key.sub=value"
            )


def resolver_in(text: str) -> str | None:
    """The name of the first resolver in a text that files may not use."""
    before = None
    while before != text:  # from the innermost on
        before, text = text, _HARMLESS.sub("x", text)
    names = (found.strip() for found in _RESOLVER.findall(text))
    return next((name for name in names if name not in RESOLVERS), None)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of all texts in a tree."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list):
        for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(item, f"{key}.{name}" if key else str(name))
