"""Megatron's string for ``parallel.pipeline_model_parallel_layout``."""

import re


def expanded_layout(layout: str) -> str:
    """The same with repeats written out: ``E`` embedding, ``t`` layer, ``L`` loss, ``|`` between chunks.

    ``x*n`` repeats one character, ``(xy)*n`` several; blanks and commas mean nothing.
    """
    plain = re.sub(r"[\s,]", "", layout)
    plain = re.sub(r"\(([^()]*)\)\*(\d+)", lambda match: match[1] * int(match[2]), plain)
    return re.sub(r"(.)\*(\d+)", lambda match: match[1] * int(match[2]), plain)
