"""Read, merge, override and save YAML configurations; unknown keys are errors, never ignored."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_video.config.build import TARGET_KEY
from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path

DEFAULTS_KEY = "defaults"
# Raised for bad YAML: forbidden characters, malformed numbers (0x_), brackets nested a thousand deep.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError, OmegaConfBaseException)


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    base: str | Path | None = None,
    known: Collection[str] | None = None,
    allow_missing: bool = False,
) -> DictConfig:
    """Read the files that ``defaults`` in ``path`` names, then ``path``, then ``key=value`` overrides; later ones win.

    ``+section.key=value`` adds a key that the files leave at its default, as in Hydra; the section must exist.

    ``defaults`` is a list at the top of the file. ``other.yaml`` (relative to the file that names it) is merged at the
    root, ``section: other.yaml`` under the key ``section``. Interpolations (``${data.size}``) are allowed. ``???``
    marks a value that the caller must give, unless ``allow_missing`` is set (to inspect a file as it is). The result is
    in struct mode: reading an unknown key raises.

    ``base`` is a file merged below everything else; ``path`` may then only have the top-level keys of ``base``.
    ``known`` lists the permitted keys directly; a dotted key (``data.root``) also restricts the keys of its section.

    Raises ``UserError`` for a missing or invalid file, an unknown key, a circular ``defaults``, a malformed override,
    an override of a key that does not exist, and a mandatory value that is still missing.
    """
    path = Path(path)
    merged = _read_merged(path, ())
    if base is not None:
        base_config = _read_merged(Path(base), ())
        known = [str(key) for key in base_config]
    if known is not None:
        _check_known(merged, known, str(path))
    if base is not None:
        merged = cast(DictConfig, OmegaConf.merge(base_config, merged))
    tree = cast(dict[Any, Any], OmegaConf.to_container(merged, resolve=False))
    for override in overrides:
        _apply_override(tree, override, path)
    if known is not None:
        _check_known(tree, known, f"an override of {path}")
    try:
        config = OmegaConf.create(tree)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing and not allow_missing:
            key = missing[0]
            more = f" (and {', '.join(missing[1:])})" if len(missing) > 1 else ""
            raise UserError(f"{path}: the value of '{key}'{more} is missing; give it as {key}=VALUE")
        if not missing:
            OmegaConf.to_container(config, resolve=True)  # a broken interpolation fails now, not hours into a run
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    OmegaConf.set_struct(config, True)
    return config


def save_config(config: DictConfig, path: str | Path) -> None:
    """Write ``config``, with interpolations resolved, as YAML that :func:`load_config` reads back unchanged.

    Raises ``UserError`` if an interpolation cannot be resolved or the file cannot be written.
    """
    try:
        text = OmegaConf.to_yaml(OmegaConf.create(_escaped(OmegaConf.to_container(config, resolve=True))))
    except OmegaConfBaseException as error:
        raise UserError(f"cannot save the configuration to {path}: {_first_line(error)}") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _escaped(node: Any) -> Any:
    """Escape the strings of resolved values, so that none is read as an interpolation."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def _check_known(config: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    """Raise ``UserError`` for a key that is not in ``known``.

    Checked at the top level and in each section of which ``known`` has dotted keys.
    """
    top = {key.partition(".")[0] for key in known}
    _check_keys(map(str, config), top, where)
    for section in sorted({key.partition(".")[0] for key in known if "." in key} & set(config)):
        below = config[section]
        if not isinstance(below, Mapping):
            raise UserError(f"'{section}' in {where} is {below!r}; it must be a section of keys")
        inside = {key for key in known if key.startswith(f"{section}.")}
        _check_keys((f"{section}.{key}" for key in below), inside, where)


def _check_keys(keys: Iterable[str], known: Collection[str], where: str) -> None:
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or sorted(known)
            raise UserError(f"unknown key '{key}' in {where}; nearest keys: {', '.join(nearest)}")


def _read_merged(path: Path, parents: tuple[Path, ...]) -> DictConfig:
    """Read the file at ``path`` on top of the files in its ``defaults``, depth first."""
    if path.resolve() in parents:
        chain = " -> ".join(str(parent) for parent in (*parents, path))
        raise UserError(f"{path}: its '{DEFAULTS_KEY}' come back to it ({chain}); remove one of them")
    own = _read(path)
    layers = []
    for section, name in _pop_defaults(own, path):
        layer = _read_merged(path.parent / name, (*parents, path.resolve()))
        layers.append(OmegaConf.create({section: layer}) if section else layer)
    try:
        merged = OmegaConf.merge(*layers, own)
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"{path}: cannot merge its '{DEFAULTS_KEY}': {_first_line(error)}") from error
    return cast(DictConfig, merged)


def _pop_defaults(own: DictConfig, path: Path) -> list[tuple[str | None, str]]:
    """Remove ``defaults`` from ``own`` and return the section and file of each entry."""
    try:
        entries = own.pop(DEFAULTS_KEY, [])
        if not isinstance(entries, list | ListConfig):
            raise UserError(f"{path}: '{DEFAULTS_KEY}' must be a list of YAML files")
        return [_parse_default(entry, path) for entry in entries]
    except OmegaConfBaseException as error:  # from an interpolation
        raise UserError(f"{path}: cannot read its '{DEFAULTS_KEY}': {_first_line(error)}") from error


def _parse_default(entry: Any, path: Path) -> tuple[str | None, str]:
    """``file.yaml -> (None, file)``; ``{section: file.yaml} -> (section, file)``."""
    if isinstance(entry, str):
        return None, entry
    if OmegaConf.is_dict(entry) and len(entry) == 1:
        section, name = next(iter(entry.items()))
        if isinstance(section, str) and isinstance(name, str):
            return section, name
    raise UserError(f"{path}: an entry of '{DEFAULTS_KEY}' must be FILE.yaml or SECTION: FILE.yaml, not {entry!r}")


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise UserError(f"configuration file {path} does not exist; check the path")
    try:
        config = OmegaConf.load(path)
    except (*_YAML_ERRORS, OSError) as error:
        raise UserError(f"{path} is not a readable YAML file: {_first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} must hold a mapping (key: value) at its top level")
    return config


def _apply_override(tree: dict[Any, Any], override: str, path: Path) -> None:
    """Set one ``dotted.key=value`` in ``tree``. The value is YAML; a mapping is merged, anything else replaces.

    A mapping with a ``target`` also replaces: it is a different part with different arguments.
    """
    key, separator, text = override.partition("=")
    key, adds = key.strip().removeprefix("+"), key.strip().startswith("+")
    if not separator or not all(key.split(".")):
        raise UserError(f"override '{override}' is not of the form key=value (as in data.root=clips)")
    try:
        parsed = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False))
    except _YAML_ERRORS as error:
        raise UserError(f"override '{override}' has an invalid value: {_first_line(error)}") from error
    if adds:
        _add(tree, key, path)
    _set(tree, key, parsed["value"], path)


def _add(tree: dict[Any, Any], key: str, path: Path) -> None:
    """Add ``key`` to its section, if it has one and the key does not exist."""
    *parents, last = key.split(".")
    section = _section(tree, parents, key, path)
    if parents and isinstance(section, dict):
        section.setdefault(last, None)


def _section(tree: dict[Any, Any], parents: Sequence[str], key: str, path: Path) -> Any:
    node: Any = tree
    for name in parents:
        node = node[_existing_key(node, name, key, tree, path)]
    return node


def _set(tree: dict[Any, Any], key: str, value: Any, path: Path) -> None:
    *parents, last = key.split(".")
    node = _section(tree, parents, key, path)
    slot = _existing_key(node, last, key, tree, path)
    if isinstance(value, dict) and isinstance(node[slot], dict) and TARGET_KEY not in value:
        for name, item in value.items():
            _set(tree, f"{key}.{name}", item, path)
    else:
        node[slot] = value


def _existing_key(node: Any, name: str, key: str, tree: dict[Any, Any], path: Path) -> Any:
    """Return the key or list index of ``node`` called ``name``. Raises ``UserError`` if there is none."""
    if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
        return int(name)
    if isinstance(node, dict):
        for candidate in node:
            if str(candidate) == name:
                return candidate
    known = list(_dotted_keys(tree))
    nearest = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or [str(top) for top in tree]
    raise UserError(
        f"unknown key '{key}' in an override of {path}; nearest keys: {', '.join(nearest)} "
        "(+section.key=value adds one that the file leaves at its default)"
    )


def _dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, item in pairs:
        yield f"{prefix}{name}"
        yield from _dotted_keys(item, f"{prefix}{name}.")


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).strip().split("\n", maxsplit=1)[0]
