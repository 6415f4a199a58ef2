"""Numbers that are none: YAML has ``.nan`` and ``.inf``, and every comparison with the first is false."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from megatron_focus.config.schema import RunConfig


def finite_problems(config: RunConfig) -> list[str]:
    """One sentence for each number that is not finite."""
    return [f"{key}={value} must be a finite number" for key, value in _numbers("", config) if not math.isfinite(value)]


def _numbers(key: str, value: object) -> Iterator[tuple[str, float]]:
    if is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = [(str(place), part) for place, part in enumerate(value)]
    else:
        if isinstance(value, float):
            yield key, value
        return
    for name, part in parts:
        yield from _numbers(f"{key}.{name}" if key else name, part)
