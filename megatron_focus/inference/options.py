"""Options that all programs share which ask a release."""

import argparse

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Types of weights, by torch's names; ``auto`` is the type in which the folder has them."""


def add_machine_options(parser: "argparse._ActionsContainer") -> None:
    """``--device``, None where it is not given, and ``--dtype``."""
    parser.add_argument("--device", help="by torch's names (default: cuda where torch finds one, else cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as in the folder)")
