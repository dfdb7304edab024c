"""Build the parts that a configuration names: ``{target: package.module.Name, parameter: value, ...}``.

Only names that start with one of :data:`ALLOWED_PREFIXES` can be built, so a configuration file is data and cannot run
arbitrary code.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_video.core.errors import UserError

ALLOWED_PREFIXES = ("ldm_video.", "data.", "eval.", "torch.optim.", "diffusers.", "pytorch_lightning.")
TARGET_KEY = "target"
PARTIAL_KEY = "partial"

_KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def build(node: Mapping[str, Any] | DictConfig, **injected: Any) -> Any:
    """Call the ``target`` of ``node`` with its other keys as arguments; build nested mappings with a ``target`` first.

    ``injected`` are arguments that a file cannot hold (parameters, built parts); they are passed to the outermost
    target. ``partial: true`` returns ``functools.partial`` of the target instead of calling it.

    Raises ``UserError`` for a target that is unknown or not allowed, and for an argument that is unexpected, missing or
    rejected by the target.
    """
    plain = _plain(node)
    function = check_target(plain, injected)
    arguments = {key: _build_nested(value) for key, value in _arguments(plain).items()} | injected
    if _is_partial(plain):
        return partial(function, **arguments)
    missing = [name for name in _required(function) if name not in arguments]
    if missing:
        raise UserError(f"{plain[TARGET_KEY]} needs '{missing[0]}', which the configuration does not give; add it")
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:  # an argument has the wrong type or value
        raise UserError(f"cannot build {plain[TARGET_KEY]}: {error}") from error


def check_target(node: Mapping[str, Any] | DictConfig, injected: Collection[str] = ()) -> Callable[..., Any]:
    """Return the callable that ``node`` names, after checking that it accepts every key of ``node`` and ``injected``.

    Nothing is called, and nested targets are not checked. Raises ``UserError`` as :func:`build` does.
    """
    plain = _plain(node)
    target = plain.get(TARGET_KEY)
    if not isinstance(target, str):
        raise UserError(f"a part of the configuration has no '{TARGET_KEY}: package.module.Name' (keys: {list(plain)})")
    function = _locate(target)
    names = _arguments(plain)
    _is_partial(plain)
    for name in injected:
        if name in names:
            raise UserError(f"'{name}' of {target} is given by the program; remove it from the configuration")
    accepted = _accepted(function)
    for name in (*names, *injected):
        if accepted is not None and name not in accepted:
            nearest = difflib.get_close_matches(name, accepted, n=3, cutoff=0.5) or accepted
            raise UserError(f"{target} does not take '{name}'; nearest arguments: {', '.join(nearest) or 'none'}")
    return function


def missing_arguments(node: Mapping[str, Any] | DictConfig) -> list[str]:
    """Return the required arguments of the target that ``node`` does not give; the program has to inject them."""
    plain = _plain(node)
    return [name for name in _required(check_target(plain)) if name not in plain]


def _plain(node: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    except OmegaConfBaseException as error:
        raise UserError(f"cannot resolve a part of the configuration: {str(error).splitlines()[0]}") from error
    if not isinstance(plain, Mapping):
        raise UserError(f"a part of the configuration must be a mapping with a '{TARGET_KEY}', not {plain!r}")
    return {str(key): value for key, value in plain.items()}


def _build_nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        if TARGET_KEY in value:
            return build(value)
        return {key: _build_nested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_build_nested(item) for item in value]
    return value


def _arguments(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in (TARGET_KEY, PARTIAL_KEY)}


def _is_partial(plain: dict[str, Any]) -> bool:
    flag = plain.get(PARTIAL_KEY, False)
    if not isinstance(flag, bool):
        raise UserError(f"'{PARTIAL_KEY}' of {plain[TARGET_KEY]} must be true or false, not {flag!r}")
    return flag


def _locate(target: str) -> Callable[..., Any]:
    """Import ``package.module.Name`` or ``package.module.Class.method``, if allowed and not private."""
    segments = target.split(".")
    if not target.startswith(ALLOWED_PREFIXES):
        raise UserError(f"model part '{target}' is not allowed; it must start with {', '.join(ALLOWED_PREFIXES)}")
    if not all(segment.isidentifier() and not segment.startswith("_") for segment in segments):
        raise UserError(f"unknown model part '{target}'; write it as package.module.Name")
    found = _import_from(segments[:-1], segments[-1:], target)
    if found is None and len(segments) > 2:
        found = _import_from(segments[:-2], segments[-2:], target)
    if found is None:
        raise UserError(f"unknown model part '{target}'; there is no such module or name")
    if not callable(found):
        raise UserError(f"model part '{target}' is neither a class nor a function")
    # A module's namespace includes its imports: without this check, `ldm_video.x.run` could be `subprocess.run`.
    if not f"{getattr(found, '__module__', None)}.".startswith(ALLOWED_PREFIXES):
        raise UserError(f"model part '{target}' comes from a package that is not allowed: {found.__module__}")
    return found


def _import_from(module_path: list[str], names: list[str], target: str) -> Any:
    """Return the attribute ``names`` of a module, through classes only; ``None`` if module or name is absent."""
    module_name = ".".join(module_path)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            return None
        raise UserError(f"model part '{target}' cannot be imported: {error}; install what is missing") from error
    for index, name in enumerate(names):
        if index and not inspect.isclass(found):
            return None
        found = getattr(found, name, None)
    return found


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Return the parameters of ``function``, or ``None`` for a built-in without a signature."""
    try:
        return dict(inspect.signature(function).parameters)
    except ValueError:
        return None


def _accepted(function: Callable[..., Any]) -> list[str] | None:
    """Return the names that can be passed by keyword; ``None`` if any can."""
    parameters = _parameters(function)
    if parameters is None or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return [name for name, p in parameters.items() if p.kind in _KEYWORD_KINDS]


def _required(function: Callable[..., Any]) -> list[str]:
    parameters = _parameters(function) or {}
    return [n for n, p in parameters.items() if p.kind in _KEYWORD_KINDS and p.default is inspect.Parameter.empty]
