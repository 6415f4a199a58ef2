"""What a mode of ``tools/benchmark.py`` is: the options it takes, and the function that measures."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Option:
    """An option that one mode or several take."""

    flag: str
    help: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of ``add_argument``; no default, which is a mode's."""

    @property
    def name(self) -> str:
        """Of the attribute that holds the value."""
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One thing that is measured."""

    flag: str | None
    """The option that chooses it; None for the one without."""
    title: str
    """What is measured, in a few words."""
    options: Mapping[Option, Any]
    """What it takes, each with its default; None, for what the help says."""
    run: Callable[[argparse.Namespace], dict[str, Any]]
    """Measures, prints tables and a verdict, returns everything as plain values; ``ValueError`` if it cannot run."""


def add_modes(parser: argparse.ArgumentParser, modes: tuple[Mode, ...]) -> None:
    """The modes' flags, then their options in groups of those that the same modes take."""
    flags = parser.add_mutually_exclusive_group()
    for mode in modes:
        if mode.flag is not None:
            flags.add_argument(mode.flag, action="store_true", help=f"measure {mode.title}")
    takers: dict[Option, list[Mode]] = {}
    for mode in modes:
        for option in mode.options:
            takers.setdefault(option, []).append(mode)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option, taking in takers.items():
        title = "; ".join(mode.title if mode.flag is None else f"{mode.flag}, {mode.title}" for mode in taking)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(option.flag, help=f"{option.help}{_defaults(option, taking)}", **option.settings)


def chosen_mode(parser: argparse.ArgumentParser, parsed: argparse.Namespace, modes: tuple[Mode, ...]) -> Mode:
    """The mode that was asked for; its defaults are put into ``parsed``, and options of others end the program."""
    default = next(mode for mode in modes if mode.flag is None)
    mode = next((m for m in modes if m.flag is not None and getattr(parsed, m.flag.removeprefix("--"))), default)
    for option in {option: None for m in modes for option in m.options}:
        if option in mode.options:
            if getattr(parsed, option.name) is None:
                setattr(parsed, option.name, mode.options[option])
        elif getattr(parsed, option.name) is not None:
            takers = " and ".join(m.flag for m in modes if m.flag is not None and option in m.options)
            refusal = f"only used with {takers}" if mode.flag is None else f"not used with {mode.flag}"
            parser.error(f"argument {option.flag}: {refusal}")
    return mode


def _defaults(option: Option, modes: list[Mode]) -> str:
    """Of each mode that takes the option, once if they are equal."""
    shown = {mode.flag: _shown(mode.options[option]) for mode in modes if mode.options[option] is not None}
    if not shown:
        return ""
    if len(set(shown.values())) == 1:
        return f" (default: {next(iter(shown.values()))})"
    return f" (default: {'; '.join(f'{value} with {flag}' for flag, value in shown.items())})"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join("x".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value)
