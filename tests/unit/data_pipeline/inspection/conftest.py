import json
import shutil

import pytest

from data_pipeline.conversations.rendering import Renderer
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson

HOSTILE = "<script>alert('&')</script> \"quoted\" <|eot_id|> 日本\n</style></div>"


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory, llava_folder, tokenizer):
    """24 samples of one source, 7 of another (one more is left out), a text that is HTML; shards of 5 samples."""
    folder = tmp_path_factory.mktemp("two_sources")
    shutil.copytree(llava_folder / "images", folder / "images")
    records = json.loads((llava_folder / "data.json").read_text())[:6]  # the last one has no image
    records[2]["image"] = "missing.png"
    records[3]["sample_id"] = records[3].pop("id")
    for number in range(2):
        turns = [{"from": "human", "value": HOSTILE}, {"from": "gpt", "value": HOSTILE}]
        records.append({"id": f"<b>{number}", "conversations": turns})
    (folder / "small.json").write_text(json.dumps(records))
    sources = [
        LlavaJson(llava_folder / "data.json", llava_folder / "images", "llava"),
        LlavaJson(folder / "small.json", folder / "images", "small", published=10),
    ]
    prepare(
        sources,
        folder / "prepared",
        renderer=Renderer(tokenizer, "llama3"),
        samples_per_shard=5,
        on_bad_sample="skip",
        max_left_out=0.2,
        progress=False,
    )
    return folder / "prepared"
