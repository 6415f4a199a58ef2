"""YAML + ``key=value`` -> RunConfig: the one path by which settings arrive."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from megatron_focus.config.schema import RunConfig


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Merge the defaults, a YAML file and overrides, in this order.

    A YAML file may name a file to inherit from, relative to itself, under the key ``base``, or a list of files, of
    which a later one replaces what an earlier one says.

    Args:
        path: the YAML file, or None for the defaults alone.
        overrides: ``section.key=value`` strings.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or an override without ``=``; names file, key and value.
        FileNotFoundError: the file, or its base, is missing.
    """
    merged = OmegaConf.structured(RunConfig)
    for source, layer in [*_layers(path), *((f"override {o!r}", _dotlist(o)) for o in overrides)]:
        _say_off(layer, merged)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ValueError(f"{source}: {_reason(error)}") from error
    try:
        return cast(RunConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_reason(error)}") from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every field included; ``load_config`` reads it back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _layers(path: str | Path | None) -> list[tuple[str, DictConfig]]:
    """``path`` and all that it inherits from, what is inherited first."""
    return _with_bases(Path(path), ()) if path is not None else []


def _with_bases(file: Path, children: tuple[Path, ...]) -> list[tuple[str, DictConfig]]:
    if file.resolve() in children:
        raise ValueError(f"{file}: key 'base': the files inherit from each other in a circle")
    if not file.is_file():
        raise FileNotFoundError(f"configuration file {file} does not exist")
    try:
        layer = OmegaConf.load(file)
    except Exception as error:  # yaml's errors have no common base that OmegaConf keeps
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(layer, DictConfig):
        raise ValueError(f"{file}: expected a mapping of sections at the top level, got {type(layer).__name__}")
    base = layer.pop("base", None)
    names = list(base) if isinstance(base, ListConfig) else [] if base is None else [base]
    layers = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{file}: key 'base': expected the name of a file, or a list of such, got {base!r}")
        layers += _with_bases(file.parent / name, (*children, file.resolve()))
    return [*layers, (str(file), layer)]


def _say_off(layer: DictConfig, current: DictConfig) -> None:
    """Where a word is expected: YAML reads ``off`` without quotes as false, and ``on`` as true."""
    for key in [str(key) for key in layer if key in current and not OmegaConf.is_interpolation(layer, str(key))]:
        value, known = layer[key], current[key]
        if isinstance(value, DictConfig) and isinstance(known, DictConfig):
            _say_off(value, known)
        elif isinstance(value, bool) and isinstance(known, str):
            layer[key] = "on" if value else "off"


def _dotlist(override: str) -> DictConfig:
    if "=" not in override:
        raise ValueError(f"override {override!r}: expected section.key=value")
    try:
        return OmegaConf.from_dotlist([override])
    except YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _reason(error: OmegaConfBaseException) -> str:
    """Of a setting that does not fit; a whole section that is replaced by a value has no key of its own."""
    key = f"key {error.full_key!r}: " if error.full_key else ""
    return key + str(error).splitlines()[0]
