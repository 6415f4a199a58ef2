"""The folder of a data set under way: begun with some settings, and some of its shards are complete."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.dataset.dataset_file import DATASET, read_dataset_file
from data_pipeline.dataset.storage import Storage
from data_pipeline.preparation.part import PARTS, PartSummary, part_file, read_summary
from data_pipeline.preparation.plan import PlannedShard, settings_differences
from data_pipeline.preparation.written_aside import written_aside

PLAN = "plan.json"
"""Holds the settings of a data set under way."""

SHARDS = "shards"


@dataclass(frozen=True, kw_only=True)
class UnfinishedFolder:
    """What one call of ``prepare`` finds and leaves in the folder. Several may work in it at the same time."""

    folder: Path
    shards: Sequence[PlannedShard]
    """All of the plan."""
    settings: dict[str, Any]
    """See ``describe_settings``."""

    def finished(self) -> dict[str, Any] | None:
        """``dataset.json``, where the data set is finished.

        Raises:
            ValueError: it is another data set, or ``dataset.json`` is broken.
        """
        try:
            info = read_dataset_file(Storage(str(self.folder)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        self._compare(info.get("settings", {}), f"{self.folder}: a finished data set is there, and")
        return info

    def begin(self) -> None:
        """Make the folder and note the settings, or compare them with those that it was begun with.

        Raises:
            ValueError: the settings differ (what differs is named), or something else is in the folder.
        """
        plan = self.folder / PLAN
        self.folder.mkdir(parents=True, exist_ok=True)
        if not plan.exists():
            # Another task may have written the plan by now.
            others = sorted(set(os.listdir(self.folder)) - {PARTS, SHARDS, PLAN})
            if others and DATASET not in others:
                raise ValueError(f"{self.folder}: holds {', '.join(others[:3])}; choose a new or an empty folder")
        for name in (PARTS, SHARDS):
            (self.folder / name).mkdir(exist_ok=True)
        if not plan.exists():
            with written_aside(plan, self.folder / PARTS, first_wins=True) as aside:
                aside.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        self._compare(_read(plan), f"{self.folder}: a data set was begun there, and")

    def complete(self) -> dict[str, PartSummary]:
        """The complete shards by name."""
        summaries = {shard.name: read_summary(self.folder, shard) for shard in self.shards}
        return {name: summary for name, summary in summaries.items() if summary is not None}

    def all_complete(self) -> bool:
        """Whether no part file is missing."""
        present = set(os.listdir(self.folder / PARTS))
        return all(part_file(self.folder, shard).name in present for shard in self.shards)

    def remove_remains(self, shards: Sequence[PlannedShard]) -> None:
        """Remove what killed processes left of shards that this call is about to write."""
        names = {shard.name for shard in shards}
        for file in (self.folder / PARTS).iterdir():
            if file.name.partition(".")[0] in names:
                file.unlink(missing_ok=True)

    def forget_left_out(self, source: int) -> None:
        """Let shards of a source that lack samples be written again, as their files may be repaired by then."""
        for shard in self.shards:
            if shard.source == source and (summary := read_summary(self.folder, shard)) and summary.left_out:
                part_file(self.folder, shard).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a finished data set does not need."""
        # Another process may be removing it too, or be writing a file into it, and then removes it itself.
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        (self.folder / PLAN).unlink(missing_ok=True)

    def _compare(self, stored: dict[str, Any], beginning: str) -> None:
        if differences := settings_differences(stored, self.settings):
            raise ValueError(
                f"{beginning} its settings were others: {'; '.join(differences)}. Choose another folder or remove it"
            )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: broken JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, not {type(content).__name__}")
    return content
