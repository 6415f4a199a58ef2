import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from data_pipeline.config import ImageGeometry
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer, train_tokenizer
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson

settings.register_profile("repository", database=None, deadline=None, derandomize=True)
settings.load_profile("repository")

TEXTS = [
    "What is in this picture? A cat sits on a mat, and a red ball lies beside it.",
    "Read the chart: the value for 2023 is 1,024 and the value for 2024 is 2,048.\n\nWhich one is larger?",
    "Describe the image in detail. The image shows a street with several cars; the sky is blue.",
] * 20


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 512, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def small_geometry():
    """The geometry of the quickstart: 8x8 cells a tile."""
    return ImageGeometry(
        tile_size=112, patch_size=14, grid_pinpoints=[[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
    )


@pytest.fixture(scope="session")
def image_bytes():
    """Makes the bytes of an image file of random pixels, smooth enough to be a plausible picture."""

    def make(height, width, format="JPEG", mode="RGB", seed=0, **save):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, format, **save)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory, image_bytes):
    """A LLaVA data set of 24 samples: data.json and images/, with text-only and two-image samples among them."""
    folder = tmp_path_factory.mktemp("llava")
    (folder / "images").mkdir()
    random = np.random.default_rng(1)
    records = []
    for number in range(24):
        images = {5: [], 11: [0, 1]}.get(number % 12, [0])
        names = []
        for image in images:
            height, width = (int(v) for v in random.integers(40, 300, 2))
            format, suffix = ("PNG", "png") if number % 3 == 0 else ("JPEG", "jpg")
            names.append(f"{number}-{image}.{suffix}")
            (folder / "images" / names[-1]).write_bytes(image_bytes(height, width, format, seed=number))
        question = "<image>\n" * len(images) + f"What is in picture {number}?"
        record = {
            "id": f"s{number}",
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "A cat on a mat. " * (1 + number % 7)},
                {"from": "human", "value": "Which colour is it?"},
                {"from": "gpt", "value": "Red."},
            ],
        }
        if names:
            record["image"] = names if len(names) > 1 else names[0]
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records))
    return Path(folder)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, llava_folder, tokenizer):
    """The data set of llava_folder in shards of 5 samples."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    source = LlavaJson(llava_folder / "data.json", llava_folder / "images", "llava")
    prepare([source], folder, renderer=Renderer(tokenizer, "llama3"), samples_per_shard=5, progress=False)
    return folder


@pytest.fixture
def damaged(prepared, tmp_path):
    """A copy of the prepared data set to damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(prepared, folder)
    return folder
