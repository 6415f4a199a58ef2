"""Sample folders of the sets that their authors publish as questions: DocVQA, ChartQA, DVQA, AI2D, GeoQA."""

import json
from pathlib import Path
from random import Random
from typing import Any

from examples.sample_sets.pictures import draw_bars, draw_cycle, draw_page, draw_triangle, save

CYCLES = [["egg", "larva", "pupa", "beetle"], ["seed", "sprout", "plant"], ["rain", "river", "sea", "cloud"]]


def write_docvqa(folder: Path, random: Random) -> None:
    """The present release: annotations and pages in folders of their own."""
    data: list[dict[str, Any]] = []
    for number in range(6):
        page, lines = draw_page(random, 600 + 40 * number, 800, lines=6 + number)
        image = f"documents/mill{number:04d}_1.png"
        save(page, folder / "spdocvqa_images" / Path(image).name)
        for place in range(1 + number % 3):
            words = lines[place].split()
            data.append(
                {
                    "questionId": 100 * number + place,
                    "question": f"What is the first word of line {place + 1}?",
                    "question_types": ["free_text"],
                    "image": image,
                    "docId": number,
                    "ucsf_document_id": f"mill{number:04d}",
                    "ucsf_document_page_no": "1",
                    "answers": [words[0], words[0].capitalize()],
                    "data_split": "train",
                }
            )
    # Published in no order of documents.
    random.shuffle(data)
    content = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "train", "data": data}
    _write_json(folder / "spdocvqa_qas/train_v1.0_withQT.json", content)


def write_chartqa(folder: Path, random: Random) -> None:
    """Human and machine-made questions; some charts have both."""
    human, augmented = [], []
    for number in range(8):
        chart, values = draw_bars(random, 500 + 30 * number, 400)
        name = f"{'two_col' if number % 2 else 'multi_col'}_{number}.png"
        save(chart, folder / "train/png" / name)
        (first, value), *_ = values.items()
        if number % 3 != 2:
            human.append({"imgname": name, "query": f"What is the value of {first}?", "label": str(value)})
            total = str(sum(values.values()))
            human.append({"imgname": name, "query": "What is the sum of all bars?", "label": total})
        if number % 3 != 0:
            largest = max(values, key=lambda key: values[key])
            augmented.append({"imgname": name, "query": "Which bar is the highest?", "label": largest})
    _write_json(folder / "train/train_human.json", human)
    _write_json(folder / "train/train_augmented.json", augmented)


def write_dvqa(folder: Path, random: Random) -> None:
    """Bar charts with questions by template, and a validation image that training does not use."""
    records = []
    for number in range(20):
        chart, values = draw_bars(random, 448, 448)
        name = f"bar_train_{number + 1:08d}.png"
        save(chart, folder / "images" / name)
        questions = [("How many bars are there?", str(len(values)), "structure")]
        questions += [(f"What is the value of {key}?", str(value), "data") for key, value in values.items()]
        for place, (question, answer, kind) in enumerate(questions):
            records.append(
                {
                    "question": question,
                    "question_id": 100 * number + place,
                    "template_id": kind,
                    "answer": answer,
                    "answer_bbox": [],
                    "image": name,
                }
            )
    save(draw_bars(random, 448, 448)[0], folder / "images/bar_val_easy_00000001.png")
    _write_json(folder / "train_qa.json", records)


def write_ai2d(folder: Path, random: Random) -> None:
    """Diagrams with and without letters over their labels; the last diagram belongs to the benchmark."""
    for number in range(6):
        names, size = CYCLES[number % len(CYCLES)], 320 + 64 * number
        image = f"{number}.png"
        save(draw_cycle(names, size), folder / "images" / image)
        letters = [chr(ord("A") + place) for place in range(len(names))]
        save(draw_cycle(letters, size), folder / "abc_images" / image)
        options = random.sample(names, len(names))
        missing = ["{}"] if len(names) < 4 else []
        questions = {
            f"What comes after {names[0]}?": (False, options, options.index(names[1])),
            f"Which letter stands for {names[-1]}?": (True, letters, letters.index(letters[-1])),
        }
        content = {
            "imageName": image,
            "questions": {
                text: {
                    "abcLabel": abc,
                    "answerTexts": [*choices, *missing],
                    "correctAnswer": answer,
                    "questionId": f"{image}-{place}",
                }
                for place, (text, (abc, choices, answer)) in enumerate(questions.items())
            },
        }
        _write_json(folder / f"questions/{image}.json", content)
    (folder / "ai2d_test_ids.csv").write_text("5\n")


def write_geoqa_plus(folder: Path, random: Random) -> None:
    """Problems about the angles of a triangle with two equal sides."""
    for number in range(8):
        degrees = random.randrange(30, 120, 10)
        save(draw_triangle(degrees, 420, 320 + 20 * number), folder / f"image/{number}.png")
        right = (180 - degrees) // 2
        choices = [f"{right + step}°" for step in (-10, 0, 10, 20)]
        random.shuffle(choices)
        content = {
            "id": number,
            "subject": f"如图，AB=AC，∠A={degrees}°，则∠B的度数是()",
            "choices": choices,
            "label": choices.index(f"{right}°"),
            "answer": "",
        }
        _write_json(folder / f"json/{number}.json", content)


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
