"""Sample folders of the sets that are published in LLaVA's own form."""

import json
from pathlib import Path
from random import Random
from typing import Any

from data_pipeline.conversations.conversation import IMAGE_TOKEN
from data_pipeline.sources.prompts import OPTION_LETTER, SHORT_ANSWER, turns
from examples.sample_sets.pictures import COLOURS, Scene, draw_page, draw_scene, save

SIZES = [(336, 336), (640, 480), (480, 640), (800, 200), (200, 700), (96, 64), (512, 512), (1000, 700)]

SHAREGPT4V_FOLDERS = [
    "coco/train2017/{:012d}.jpg",
    "gqa/images/{}.jpg",
    "ocr_vqa/images/{:010d}.jpg",
    "textvqa/train_images/{:016x}.jpg",
    "vg/VG_100K/{}.jpg",
    "vg/VG_100K_2/{}.jpg",
    "sam/images/sa_{}.jpg",
    "web-celebrity/images/{}.jpg",
    "web-landmark/images/{}.jpg",
    "wikiart/images/{}.jpg",
    "share_textvqa/images/{:016x}.jpg",
    "llava/llava_pretrain/images/00000/{:09d}.jpg",
]

OPEN_LLAVA_NEXT_FOLDERS = [
    "llava/llava_pretrain/images/00453/{:09d}.jpg",
    "coco/train2017/{:012d}.jpg",
    "allava_vflan/images/images_191task_1k/VQA_shapes_{}.png",
    "ai2d/images/{}.png",
    "chatqa/train/png/{}.png",
    "docvqa/train/documents/{}.png",
    "dvqa/images/bar_train_{:08d}.png",
    "geoqa+/images/{}.png",
    "synthdog-en/images/{}.jpg",
]


def write_llava_json(folder: Path, random: Random) -> None:
    """Plain LLaVA json with one, two or no images a sample."""
    records = []
    for number in range(8):
        scenes = [draw_scene(random, *SIZES[number]) for _ in range((1, 1, 2, 0)[number % 4])]
        names = [f"{number}-{place}.png" for place in range(len(scenes))]
        for scene, name in zip(scenes, names, strict=True):
            save(scene.image, folder / "images" / name)
        if len(scenes) == 2:
            talk = turns(f"First {IMAGE_TOKEN} and second {IMAGE_TOKEN}: what is in the second?", scenes[1].caption)
        elif scenes:
            talk = turns(f"{IMAGE_TOKEN}\nDescribe the picture.", scenes[0].caption) + _follow_up(scenes[0])
        else:
            talk = turns("How many corners has a square?", "Four.") + turns("And a triangle?", "Three.")
        record: dict[str, Any] = {"id": f"talk-{number}", "conversations": talk}
        if names:
            record["image"] = names if len(names) > 1 else names[0]
        records.append(record)
    _write_json(folder / "data.json", records)


def write_llava_pretrain(folder: Path, random: Random) -> None:
    """Captions; the request stands before or after the image, as published."""
    records = []
    for number in range(12):
        scene = draw_scene(random, *SIZES[number % len(SIZES)])
        image = f"{number % 3:05d}/{number:09d}.jpg"
        save(scene.image, folder / "images" / image)
        question = (
            f"Say what is in the picture.\n{IMAGE_TOKEN}" if number % 2 else f"{IMAGE_TOKEN}\nWhat is shown here?"
        )
        records.append({"id": f"{number:09d}", "image": image, "conversations": turns(question, scene.caption)})
    _write_json(folder / "blip_laion_cc_sbu_558k.json", records)


def write_sharegpt4v(folder: Path, random: Random) -> None:
    """Every image folder of the mix, rows without an image, a repeated id, and a book cover with another suffix."""
    records: list[dict[str, Any]] = []
    for number, pattern in enumerate(SHAREGPT4V_FOLDERS):
        scene = draw_scene(random, *SIZES[number % len(SIZES)])
        image = pattern.format(number + 1)
        # OCR-VQA's covers are saved with the suffix that they were downloaded with.
        save(scene.image, (folder / image).with_suffix(".gif" if image.startswith("ocr_vqa/") else ".jpg"))
        talk = turns(f"{IMAGE_TOKEN}\nWhat do you see?", scene.caption) + _follow_up(scene)
        records.append({"id": Path(image).stem, "image": image, "conversations": talk})
    first = records[0]
    short = turns(f"{IMAGE_TOKEN}\nHow many shapes are there?\n{SHORT_ANSWER}", "Several")
    records.append({"id": first["id"], "image": first["image"], "conversations": short})
    choice = f"{IMAGE_TOKEN}\nWhat is this?\nA. A drawing\nB. A map\n{OPTION_LETTER}"
    records.append({"id": "choice-1", "image": first["image"], "conversations": turns(choice, "A")})
    for number in range(4):
        talk = turns(f"What is {number} plus {number}?", f"It is {2 * number}.") + turns(
            "Thank you.", "You are welcome."
        )
        records.append({"id": f"text-{number}", "conversations": talk})
    _write_json(folder / "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json", records)


def write_open_llava_next(folder: Path, random: Random) -> None:
    """Image folders of every part of the mix, and rows without an image."""
    records: list[dict[str, Any]] = []
    for number, pattern in enumerate(OPEN_LLAVA_NEXT_FOLDERS):
        scene = draw_scene(random, *SIZES[number % len(SIZES)])
        image = pattern.format(number + 1)
        save(scene.image, folder / image)
        talk = turns(f"{IMAGE_TOKEN}\nWhat do you see?", scene.caption)
        records.append({"id": f"mix-{number}", "image": image, "conversations": talk})
    for number in range(2):
        talk = turns(f"What is {number} times {number}?", f"It is {number * number}.")
        records.append({"id": f"text-{number}", "conversations": talk})
    _write_json(folder / "open-llava-next/open-llava-next_instruct_mix1M.json", records)


def write_allava_vflan(folder: Path, random: Random) -> None:
    """Questions with long answers about images of tasks with long names."""
    records = []
    for number in range(8):
        image = f"allava_vflan/images/images_191task_1k/VQA_shapes_{number}_sample {number}.png"
        if number % 2:
            picture, lines = draw_page(random, *SIZES[number], lines=4)
            answer = f"The page has {len(lines)} lines. The first one reads: {lines[0]}."
        else:
            scene = draw_scene(random, *SIZES[number])
            picture, answer = scene.image, f"{scene.caption} The ground is plain, so that the shapes stand out."
        save(picture, folder / image)
        talk = turns(f"{IMAGE_TOKEN}\nLook closely: what does the picture hold, and how can you tell?", answer)
        records.append({"id": f"allava_vflan_inst_{number}", "image": image, "conversations": talk})
    _write_json(folder / "allava_vflan/ALLaVA-Instruct-VFLAN-4V.json", records)


def _follow_up(scene: Scene) -> list[dict[str, str]]:
    (colour, shape), place = scene.described()[-1]
    other = next(name for name in COLOURS if name != colour)
    return turns(f"Is the {shape} {place} {other}?", f"No, it is {colour}.")


def _write_json(file: Path, records: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
