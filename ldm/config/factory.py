"""Config factory: a config node `{target: dotted.path.Class, params: {...}}` becomes an object.

A config file can come from a stranger, so a target resolves only to what `ldm.config.registry` holds,
and what a model is made of only to models. Code of your own is allowed by naming its prefix:
`instantiate_from_config(config, ["my.package"])` in Python, `--allow-target my.package` on the
command line.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from ldm.config.interpolations import check_resolvers
from ldm.config.registry import ADVICE, MODULES, registered
from ldm.errors import ConfigError, UserError, did_you_mean
from ldm.files import own_or
from ldm.published.configs import our_target

# The learning rate of a `model` node is for the training command.
NODE_KEYS = ("target", "params", "learning_rate", "base_learning_rate")

_MAX_VALUES = 100_000  # of a config; the largest here has some hundreds

# What a constructor's **options hand on to its bases shows only when it is called.
_CALL_ERRORS = re.compile(r"missing \d+ required|multiple values for|unexpected keyword argument")
# What comes of values that a constructor does not look at, of a wrong type for instance.
_OF_VALUES = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
)

# Models build their parts by calling the factory again, so these have to reach the inner calls:
# what the caller allowed, what the outer object is for, and where in the config it stands.
_allowed_prefixes: ContextVar[tuple[str, ...]] = ContextVar("allowed_prefixes", default=())
_outer_kind: ContextVar[str | None] = ContextVar("outer_kind", default=None)
_outer_key: ContextVar[str] = ContextVar("outer_key", default="")


def instantiate_from_config(
    config: Mapping[str, Any], allow_targets: Iterable[str] = (), kind: str | None = None, key: str = ""
) -> Any:
    """Build `config["target"]` with `config["params"]` (an OmegaConf node or plain dict) as keyword
    arguments.

    `allow_targets` adds dotted prefixes to the trusted ones, for this object and everything built
    inside it. `kind`, of those in `ldm.config.registry`, is what it must be for; inside an object by
    default what that is for. `key` is where the node stands in the config, inside an object in its
    `params`. Raises ConfigError for a missing or untrusted target, for parameter names that the
    target does not have, and for values that it cannot use.
    """
    with allowing_targets(allow_targets), _within(_outer_key, _whole_key(key)):
        name, target, params, kind = _checked(config, kind)
        with _within(_outer_kind, kind):
            return _called(target, params, name, of_ours=not allows(name))


def build(target: Callable[..., Any], params: Mapping[str, Any], name: str) -> Any:
    """Call a class with parameters of a config, in which it is called `name`. Raises ConfigError
    for names that it does not have, and for values that it cannot use."""
    _check_params(name, target, params)
    return _called(target, params, name, of_ours=True)


def _called(target: Callable[..., Any], params: Mapping[str, Any], name: str, of_ours: bool) -> Any:
    """Of classes that are not `of_ours`, errors that are no ValueError and not of the call are their
    own."""
    try:
        return target(**params)
    except _OF_VALUES as error:
        of_call = isinstance(error, TypeError) and _CALL_ERRORS.search(str(error))
        if isinstance(error, UserError) or not (of_ours or of_call or isinstance(error, ValueError)):
            raise
        raise ConfigError(f"{name} cannot be built from its `params`: {_first_line(error)}") from error


def check_config(config: Mapping[str, Any], kind: str | None = None, key: str = "") -> None:
    """Raises ConfigError for a node that cannot be built, as far as it shows before."""
    with _within(_outer_key, _whole_key(key)):
        _checked(config, kind)


def _checked(config: Any, kind: str | None) -> tuple[str, Any, Mapping[str, Any], str | None]:
    """(the target's name, the target, its parameters, what it is for)."""
    name, params = _target_and_params(to_plain(config))
    target, kind = _object_and_kind(name, kind or _outer_kind.get())
    _check_params(name, target, params)
    return name, target, params, kind


def _target_and_params(config: Any) -> tuple[str, Mapping[str, Any]]:
    where = f"{_outer_key.get()}: " if _outer_key.get() else ""
    if not isinstance(config, Mapping) or "target" not in config:
        raise ConfigError(f"{where}a config node needs a `target` key to be built, got {_short(config)}")
    if not isinstance(config["target"], str):
        raise ConfigError(
            f"{where}`target` must be the dotted path of a class or function, got {_short(config['target'])}"
        )
    unknown = [key for key in config if key not in NODE_KEYS]
    if unknown:
        raise ConfigError(
            f"{where}the config node of {config['target']} has an unknown key {unknown[0]!r}{did_you_mean(unknown[0], NODE_KEYS)}"
        )
    params = to_plain(config.get("params")) or {}
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise ConfigError(
            f"{where}`params` of {config['target']} must be names with values, got {_short(params)}"
        )
    return config["target"], params


def _whole_key(key: str) -> str:
    outer = _outer_key.get()
    return f"{outer}.params.{key}" if outer and key else key


@contextmanager
def allowing_targets(prefixes: Iterable[str]) -> Iterator[None]:
    """Within this context, targets under these dotted prefixes may be built as well."""
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    extra = tuple(prefix.rstrip(".") + "." for prefix in prefixes)
    with _within(_allowed_prefixes, _allowed_prefixes.get() + extra):
        yield


@contextmanager
def _within(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """The object that a trusted dotted path names, with `reload` from its module read anew. Raises
    ConfigError, see the module's text."""
    return _object_and_kind(string, None, reload)[0]


def _object_and_kind(target: Any, kind: str | None, reload: bool = False) -> tuple[Any, str | None]:
    """(the object, what it is for). What was allowed is for anything."""
    if allows(target):
        return _resolve(target, reload), kind
    try:
        return registered(our_target(target), kind, reload)
    except (LookupError, TypeError, AttributeError) as error:  # the latter of what is no text
        raise ConfigError(f"target {target!r} is not under {', '.join(MODULES)}{ADVICE}") from error


def allows(target: Any) -> bool:
    """Whether the caller has allowed a target by its prefix."""
    return isinstance(target, str) and target.startswith(_allowed_prefixes.get() or ("\0",))


def _resolve(target: str, reload: bool) -> Any:
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"target {target!r}: {error}") from error
    if reload:
        importlib.reload(module)
    if not hasattr(module, name):
        raise ConfigError(
            f"target {target!r}: {module_name} has no {name!r}{did_you_mean(name, dir(module))}"
        )
    return getattr(module, name)


def _check_params(target_name: str, target: Any, params: Mapping[str, Any]) -> None:
    accepted, required, open_ended = parameters_of(target)
    unknown = [name for name in params if name not in accepted]
    if unknown and not open_ended:
        raise ConfigError(
            f"{target_name} has no parameter {unknown[0]!r}{did_you_mean(unknown[0], accepted)}"
        )
    missing = [name for name in required if name not in params]
    if missing:
        raise ConfigError(f"{target_name} needs the parameter(s) {', '.join(missing)}, missing in `params`")


def parameters_of(target: Any) -> tuple[list[str], list[str], bool]:
    """(accepted names, required names, whether anything goes) of a class's constructor or a
    function.

    `**kwargs` of a class's own constructor stands for the parameters of its bases, beside `*args`
    for what these require, too.
    """
    constructors = (
        [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)]
        if inspect.isclass(target)
        else [target]
    )
    accepted: list[str] = []
    required: list[str] = []
    hands_all_on = True
    for depth, constructor in enumerate(constructors):
        try:
            parameters = list(inspect.signature(constructor).parameters.values())
        except ValueError:  # a constructor written in C does not say what it takes
            return accepted, required, True
        if inspect.isclass(target):
            parameters = parameters[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        accepted += [p.name for p in named]
        if hands_all_on:  # else a constructor may set what its bases require itself
            required += [p.name for p in named if p.default is p.empty]
        hands_all_on &= any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return accepted, required, False
        if constructor is object.__init__:
            return accepted, required, depth > 0  # no base takes them, so they are the class's own business
    return accepted, required, True


def to_plain(config: Any) -> Any:
    """Plain dicts, lists and values from an OmegaConf node, interpolations resolved; anything else
    as it is."""
    if not OmegaConf.is_config(config):
        return config
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        hint = (
            "; give it: params of a target that another one replaces are gone"
            if isinstance(error, InterpolationKeyError)
            else ""
        )
        raise ConfigError(f"config: {str(error).splitlines()[0]}{hint}") from error


def load_config(path: str | Path) -> Any:
    """The OmegaConf tree of a YAML file. Raises UserError if it cannot be read or is not YAML."""
    path = own_or(path)
    if not path.is_file():
        raise UserError(f"config {path}: no such file")
    try:
        _check_size(path)
        config = OmegaConf.load(path)
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"config {path}: not a readable YAML file: {_first_line(error)}") from error
    except Exception as error:  # PyYAML's own errors share no useful base with the above
        raise ConfigError(f"config {path}: not valid YAML: {_first_line(error)}") from error
    if not OmegaConf.is_dict(config):
        raise ConfigError(f"config {path}: expected keys and values at the top, found something else")
    check_resolvers(config, f"config {path}")
    return config


def _check_size(path: Path) -> None:
    """Raises ConfigError for a YAML file whose aliases, each of which stands for more of them, make
    it larger than memory."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 1  # within itself, which YAML's reader refuses
            values = node.value if isinstance(node.value, list) else ()
            parts = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
            sizes[id(node)] += sum(map(size, parts))
        return sizes[id(node)]

    with path.open(encoding="utf-8") as file:  # of a text, PyYAML's errors would show a part
        tree = yaml.compose(file, Loader=yaml.SafeLoader)
    if tree is not None and size(tree) > _MAX_VALUES:
        raise ConfigError(f"config {path}: has more than {_MAX_VALUES:,} values with its aliases written out")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
