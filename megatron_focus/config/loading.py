"""YAML + ``key=value`` -> RunConfig: the one path by which settings arrive."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_focus.config.schema import RunConfig


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Merge the defaults, a YAML file and overrides, in this order.

    A YAML file may name one file to inherit from, relative to itself, under the key ``base``.

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
            reason = str(error).splitlines()[0]
            raise ValueError(f"{source}: key {error.full_key!r}: {reason}") from error
    try:
        return cast(RunConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: key {error.full_key!r}: {str(error).splitlines()[0]}") from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every field included; ``load_config`` reads it back to an equal object."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _layers(path: str | Path | None) -> list[tuple[str, DictConfig]]:
    """The chain of YAML files from the outermost base to ``path``."""
    layers: list[tuple[str, DictConfig]] = []
    seen: set[Path] = set()
    current = Path(path) if path is not None else None
    while current is not None:
        if current.resolve() in seen:
            raise ValueError(f"{current}: key 'base': the files inherit from each other in a circle")
        seen.add(current.resolve())
        if not current.is_file():
            raise FileNotFoundError(f"configuration file {current} does not exist")
        try:
            layer = OmegaConf.load(current)
        except Exception as error:  # yaml's errors have no common base that OmegaConf keeps
            raise ValueError(f"{current}: not valid YAML: {error}") from error
        if not isinstance(layer, DictConfig):
            raise ValueError(f"{current}: expected a mapping of sections at the top level, got {type(layer).__name__}")
        base = layer.pop("base", None)
        layers.append((str(current), layer))
        current = current.parent / base if base is not None else None
    return layers[::-1]


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
    return OmegaConf.from_dotlist([override])
