"""One evaluation, or one task's part of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_focus.evaluation.fingerprint import file_sha256, processor_sha256, weights_sample_sha256
from megatron_focus.evaluation.folder import EvaluationFolder
from megatron_focus.evaluation.merging import merge_parts, summary_line
from megatron_focus.evaluation.metrics.registry import METRICS
from megatron_focus.evaluation.part import Part, answer_part, check_part
from megatron_focus.evaluation.questions import BadQuestion, Question, read_questions
from megatron_focus.inference.release_folder import Release, load_release


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is asked of whom, and how."""

    release: Path
    questions: Path
    metric: str
    """A key of ``METRICS``."""
    output: Path
    """Folder of the evaluation, shared by all tasks."""
    name: str
    """Of the benchmark, in the results."""
    device: str
    dtype: str
    """See ``load_release``."""
    gamma: float | None = None
    text_layer: int | None = None
    vision_sampler: bool | None = None
    text_sampler: bool | None = None
    """These four as in the model's ``set_samplers``: None leaves what was trained."""
    part: Part


def evaluate(evaluation: Evaluation) -> str:
    """Do this task's part, and the results where it is the last; returns a line about it.

    Raises:
        ValueError: naming what cannot be used: release, questions, images, sampler settings or output folder.
        OSError: storage that is full or away; the same call may succeed later.
    """
    part = evaluation.part
    questions = read_questions(evaluation.questions, METRICS[evaluation.metric])
    check_part(part, questions)
    release = load_release(evaluation.release, evaluation.device, evaluation.dtype)
    settings = _settings(evaluation, release)
    folder = EvaluationFolder(evaluation.output)
    folder.begin(settings)
    answer_part(release, part, questions, folder)
    info = merge_parts(folder, questions, evaluation.name, settings)
    return _waiting_line(part, questions) if info is None else summary_line(folder, info)


def _settings(evaluation: Evaluation, release: Release) -> dict[str, Any]:
    """What every task must have the same; paths may differ between machines, and batches after memory ran out."""
    samplers = release.model.set_samplers(
        gamma=evaluation.gamma,
        text_layer=evaluation.text_layer,
        vision=evaluation.vision_sampler,
        text=evaluation.text_sampler,
    )
    return {
        "questions_sha256": file_sha256(evaluation.questions),
        "metric": evaluation.metric,
        "max_new_tokens": evaluation.part.max_new_tokens,
        "samplers": asdict(samplers) | {"scales": list(samplers.scales)},
        "dtype": str(release.model.dtype).removeprefix("torch."),
        "config_sha256": file_sha256(evaluation.release / "config.json"),
        "processor_sha256": processor_sha256(evaluation.release),
        "weights_sample_sha256": weights_sample_sha256(evaluation.release),
    }


def _waiting_line(part: Part, questions: Sequence[Question | BadQuestion]) -> str:
    number = len(part.share(questions))
    return (
        f"task {part.task} of {part.tasks} has answered its {number} questions; the last one to end writes the results"
    )
