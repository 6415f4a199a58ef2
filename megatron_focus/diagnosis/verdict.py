"""What is wrong with which node."""

GPU_MIN_SHARE = 0.7
"""Least share of the median where there are GPUs. CPUs share their cores with whatever else runs: not compared."""


class Verdict:
    """Problems and warnings by node; those of the whole job under an empty name.

    ``everywhere`` has what is wrong with the run on every node alike: the configuration's fault, not a node's.
    """

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {}
        self.warnings: dict[str, list[str]] = {}
        self.everywhere: list[str] = []

    def problem(self, node: str, message: str) -> None:
        """Add one; the same message is kept once."""
        _add(self.problems, node, message)

    def warning(self, node: str, message: str) -> None:
        """Add one; the same message is kept once."""
        _add(self.warnings, node, message)

    def line(self) -> str:
        """All problems in one line, by node."""
        alike: dict[str, list[str]] = {}
        for node, found in sorted(self.problems.items()):
            if node:
                alike.setdefault(", ".join(found), []).append(node)
        named = [f"{', '.join(nodes)}: {messages}" for messages, nodes in alike.items()]
        return "; ".join([*named, *self.problems.get("", []), *(f"all nodes: {found}" for found in self.everywhere)])


def ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _add(into: dict[str, list[str]], node: str, message: str) -> None:
    messages = into.setdefault(node, [])
    if message not in messages:
        messages.append(message)
