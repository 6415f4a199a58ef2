"""Pictures with questions to choose from, out of a folder in LLaVA's form."""

from pathlib import Path

from data_pipeline.conversations.chat_templates import IMAGE_TOKEN
from data_pipeline.sample import BadSample, ImageFile
from data_pipeline.sources.llava_json import LlavaRecords

MOST = 6
"""Pictures offered."""


def example_questions(folder: Path) -> list[tuple[Path, str]]:
    """The last question that begins a conversation about each of the first pictures of ``folder/questions.json``.

    Raises:
        ValueError: the folder has no such file or no folder ``images``, a sample before the end is broken, or none has
            a picture.
    """
    chosen: dict[Path, str] = {}
    for sample in LlavaRecords(folder / "questions.json", folder / "images", "examples"):
        if isinstance(sample, BadSample):
            raise ValueError(sample.message)
        if len(sample.images) != 1:
            continue
        [image] = sample.images
        assert isinstance(image, ImageFile), "this form keeps pictures in files"
        if image.path not in chosen and len(chosen) == MOST:
            break
        chosen[image.path] = sample.turns[0].text.replace(IMAGE_TOKEN, "").strip()
    if not chosen:
        raise ValueError(f"{folder / 'questions.json'}: no sample has one picture")
    return list(chosen.items())
