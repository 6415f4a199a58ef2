"""Scores and results, once every question is answered."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_focus.evaluation.answer_file import Answered, read_answers
from megatron_focus.evaluation.folder import ANSWERS, EVALUATION, RESULTS, EvaluationFolder
from megatron_focus.evaluation.metrics.registry import METRICS, Metric
from megatron_focus.evaluation.questions import BadQuestion, Question
from megatron_focus.evaluation.visual_tokens import VisualTokenCounts


def merge_parts(
    folder: EvaluationFolder, questions: Sequence[Question | BadQuestion], name: str, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Score the answers and write the results; None where answers are missing still.

    What is written depends on the parts alone and each file is renamed into its place, so that several processes may do
    this at the same time. A question that was not asked counts 0.

    Args:
        folder: of the evaluation.
        questions: all of them.
        name: of the benchmark.
        settings: what the evaluation was begun with.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        ValueError: a file of answers is damaged.
    """
    answers = read_answers(folder.part_files())
    if any(question.index not in answers for question in questions):
        return None
    metric = METRICS[settings["metric"]]
    rows = [_row(question, answers[question.index], metric) for question in questions]
    asked = [answer for answer in answers.values() if answer.not_asked is None]
    tokens = sum((answer.visual_tokens for answer in asked), VisualTokenCounts())
    info = {
        "name": name,
        "metric": metric.title,
        "score": 100 * sum(row["score"] for row in rows) / len(rows),
        "questions": len(rows),
        "not_asked": [row["not_asked"] for row in rows if row["not_asked"] is not None],
        "cut_at_max_new_tokens": sum(answer.cut for answer in asked),
        "visual_tokens": {
            "baseline": tokens.baseline,
            "after_vision": tokens.after_vision,
            "after_text": tokens.after_text,
            "effective": round(tokens.effective, 2),
            "effective_share": tokens.effective / tokens.baseline if tokens.baseline else None,
        },
        "seconds_per_question": sum(answer.seconds for answer in asked) / len(asked) if asked else None,
        "answers_file": ANSWERS,
        "settings": dict(settings),
    }
    folder.write_text(ANSWERS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    folder.write_json(EVALUATION, info)
    folder.write_json(
        RESULTS,
        {
            "tokens_kept": {f"{name}: {place}": round(share, 4) for place, share in tokens.shares().items()},
            "results": {f"{name} ({metric.title})": round(info["score"], 2)},
        },
    )
    return info


def _row(question: Question | BadQuestion, answer: Answered, metric: Metric) -> dict[str, Any]:
    """A line of the file of answers."""
    score = 0.0
    row: dict[str, Any] = {"question_id": question.id}
    if isinstance(question, Question):
        row |= {"text": question.text, "image": list(question.images), "answers": list(question.answers)}
        if answer.answer is not None:
            score = metric.score(answer.answer, question.answers, question.options)
    counts = answer.visual_tokens
    tokens = {"baseline": counts.baseline, "after_vision": counts.after_vision, "after_text": counts.after_text}
    said = {"answer": answer.answer, "score": score, "not_asked": answer.not_asked}
    return row | said | {"visual_tokens": tokens, "seconds": answer.seconds}


def summary_line(folder: EvaluationFolder, info: Mapping[str, Any]) -> str:
    """One line about an evaluation."""
    line = f"{folder.path / RESULTS}: {info['metric']} {info['score']:.2f} % over {info['questions']} questions"
    if info["not_asked"]:
        line += f", {len(info['not_asked'])} of them not asked and counted as 0 (see {EVALUATION})"
    if info["cut_at_max_new_tokens"]:
        line += f", {info['cut_at_max_new_tokens']} answers cut off (--max-new-tokens)"
    if (share := info["visual_tokens"]["effective_share"]) is not None:
        line += f"; {share:.1%} of LLaVA-NeXT's visual tokens"
    if info["seconds_per_question"] is not None:
        line += f"; {info['seconds_per_question']:.2f} s a question"
    return line
