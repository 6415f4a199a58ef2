"""The kinds of data sets, and opening one from the text that a user types."""

import inspect
from pathlib import Path
from typing import Any, get_args

from data_pipeline.sources.ai2d import Ai2d
from data_pipeline.sources.allava_vflan import AllavaVflan
from data_pipeline.sources.base import Source
from data_pipeline.sources.chartqa import ChartQa
from data_pipeline.sources.docvqa import DocVqa
from data_pipeline.sources.dvqa import Dvqa
from data_pipeline.sources.geoqa_plus import GeoQaPlus
from data_pipeline.sources.llava_json import LlavaJson
from data_pipeline.sources.llava_pretrain import LlavaPretrain
from data_pipeline.sources.open_llava_next import OpenLlavaNext
from data_pipeline.sources.parquet import Parquet
from data_pipeline.sources.sharegpt4v import ShareGpt4V
from data_pipeline.sources.synthdog_en import SynthDogEn

KINDS: dict[str, type[Any]] = {
    "llava_json": LlavaJson,
    "llava_pretrain": LlavaPretrain,
    "sharegpt4v": ShareGpt4V,
    "allava_vflan": AllavaVflan,
    "docvqa": DocVqa,
    "synthdog_en": SynthDogEn,
    "chartqa": ChartQa,
    "dvqa": Dvqa,
    "ai2d": Ai2d,
    "geoqa_plus": GeoQaPlus,
    "parquet": Parquet,
    "open_llava_next": OpenLlavaNext,
}
"""Kind by name. Each class has ``open(folder, **options)``, whose keywords are the options, and says in its docstring
which files it expects and which prompts it makes."""


def open_source(spec: str) -> Source:
    """Open ``kind=folder`` or ``kind=folder,option=value,...``.

    The option ``name`` is the name under which the samples go, the kind's own unless given. A folder cannot have a
    comma in its path.

    Raises:
        ValueError: the kind or an option is not known, a value is not of its type, or the folder has not what the kind
            expects; each names what is wrong and what was expected.
    """
    kind, equals, rest = spec.partition("=")
    folder, *pairs = rest.split(",")
    if not equals or not folder:
        raise ValueError(f"source {spec!r}: expected kind=folder or kind=folder,option=value")
    if kind not in KINDS:
        raise ValueError(f"source {spec!r}: unknown kind {kind!r}, expected one of {', '.join(KINDS)}")
    known = options_of(kind)
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(f"source {spec!r}: unknown option {pair!r} of {kind}, which has {', '.join(known)}")
        if key in options:
            raise ValueError(f"source {spec!r}: option {key} is given twice")
        options[key] = _value(spec, key, text, known[key])
    if missing := [key for key, option in known.items() if option.default is option.empty and key not in options]:
        raise ValueError(f"source {spec!r}: {kind} needs {', '.join(f'{key}=...' for key in missing)}")
    try:
        source: Source = KINDS[kind].open(Path(folder), **options)
        source.options = options
        return source
    except ValueError as error:
        raise ValueError(f"source {spec!r}: {error}") from error


def options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a kind by name, with type and default."""
    parameters = inspect.signature(KINDS[kind].open).parameters
    return {key: option for key, option in parameters.items() if option.kind is option.KEYWORD_ONLY}


def _value(spec: str, key: str, text: str, option: inspect.Parameter) -> str | int:
    if int not in (option.annotation, *get_args(option.annotation)):
        return text
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"source {spec!r}: option {key}: expected a whole number, not {text!r}") from error
