"""How a run ended, for the script that started it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(kw_only=True)
class Outcome:
    """The end of a run that ended in good order; a run that crashed leaves none."""

    status: str
    """``finished``, or ``interrupted``: a signal asked it to save and leave."""
    iteration: int
    """Completed steps, all of them in the newest checkpoint."""
    train_iters: int
    """Steps of the whole run."""

    def write(self, path: Path) -> None:
        """Write as one JSON object; a reader sees all of it or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(json.dumps(asdict(self)) + "\n")
        aside.replace(path)
