"""The folder of an evaluation: begun with some settings, filled by its parts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.preparation.written_aside import written_aside

SETTINGS = "settings.json"
"""What the evaluation was begun with."""
ANSWERS = "answers.jsonl"
"""Every question with its answer and score."""
EVALUATION = "evaluation.json"
"""All that is known of the evaluation."""
RESULTS = "results.json"
"""Score and tokens kept, for ``tools/export_hf.py --results``; it is written last."""


@dataclass(frozen=True)
class EvaluationFolder:
    """Where the parts of one evaluation, on any machines, find each other."""

    path: Path

    @property
    def parts(self) -> Path:
        """Folder of the parts' files."""
        return self.path / "parts"

    def part_file(self, task: int, tasks: int) -> Path:
        """The answers of one task."""
        return self.parts / f"answers-{task:05d}-of-{tasks:05d}.jsonl"

    def part_files(self) -> list[Path]:
        """The answers of all tasks so far, of arrays of any size."""
        return sorted(self.parts.glob("answers-*-of-*.jsonl"))

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder and note the settings, or compare them with those that it was begun with.

        Raises:
            ValueError: something else is in the folder, or an evaluation with other settings, which are named.
        """
        file = self.path / SETTINGS
        if self.path.is_dir() and not file.exists():
            # Another task may have begun by now.
            others = sorted({entry.name for entry in self.path.iterdir()} - {self.parts.name, SETTINGS})
            if others and not file.exists():
                raise ValueError(f"{self.path}: holds {', '.join(others[:3])}; choose a new or an empty folder")
        self.parts.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            self.write_json(SETTINGS, settings)
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: broken JSON: {error}") from error
        settings = json.loads(json.dumps(settings))  # as it was stored: tuples are lists
        if stored != settings:
            keys = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
            named = "; ".join(f"{key} was {stored.get(key)!r}, is now {settings.get(key)!r}" for key in keys)
            raise ValueError(f"{self.path}: an evaluation was begun there with others: {named}. Choose another folder")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a file that is whole or absent."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file that is whole or absent."""
        with written_aside(self.path / name, self.parts) as aside:
            aside.write_text(text, encoding="utf-8")
