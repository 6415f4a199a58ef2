"""How far each path's tiles are from those of transformers' LlavaNextImageProcessor, in levels of 0 to 255."""

import pytest
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.utils import is_torchvision_available

from data_pipeline.config import ImageGeometry
from data_pipeline.decoding.cpu import cpu_tiles
from tests.pictures import PICTURES, drift, encoded, processor_options

GEOMETRY = ImageGeometry()
FILES = [(name, format) for name in PICTURES for format in ("JPEG", "PNG")]


@pytest.fixture(scope="module")
def pil_processor():
    return LlavaNextImageProcessorPil(**processor_options(GEOMETRY))


@pytest.fixture(scope="module")
def torch_processor():
    from transformers import LlavaNextImageProcessor

    return LlavaNextImageProcessor(**processor_options(GEOMETRY))


@pytest.fixture(scope="module")
def files():
    return {(name, format): encoded(PICTURES[name](), format) for name, format in FILES}


@pytest.fixture(scope="module")
def dali_tiles(files):
    """All pictures, through the same graph as on a GPU."""
    pytest.importorskip("nvidia.dali")
    from data_pipeline.decoding.dali import DaliTiler

    tiler = DaliTiler(GEOMETRY, len(files), device="cpu", num_threads=2)
    tiler.submit([(f"{name}.{format}", data) for (name, format), data in files.items()])
    tiles = dict(zip(files, tiler.fetch(), strict=True))
    tiler.close()
    return tiles


@pytest.mark.parametrize("file", FILES, ids=" ".join)
def test_cpu_beside_the_pil_processor(file, files, pil_processor):
    difference = drift(cpu_tiles(files[file], "x", GEOMETRY), files[file], pil_processor)
    # Measured: maximum 1 or 2 (5 for the tall photo), mean up to 0.006 (0.020). Pillow and torch round to uint8 between
    # the two passes, and weigh with 22 and 15 bits.
    assert difference.max() < 6.5
    assert difference.mean() < 0.03


@pytest.mark.skipif(not is_torchvision_available(), reason="transformers' torch processor needs torchvision")
@pytest.mark.parametrize("file", FILES, ids=" ".join)
def test_cpu_beside_the_torch_processor(file, files, torch_processor):
    difference = drift(cpu_tiles(files[file], "x", GEOMETRY), files[file], torch_processor)
    # Measured: the same pixels; what is left is float32 rounding of the normalisation (below 1e-4 levels).
    assert difference.max() < 1e-3


@pytest.mark.parametrize("file", FILES, ids=" ".join)
def test_dali_beside_the_pil_processor(file, files, dali_tiles, pil_processor):
    difference = drift(dali_tiles[file], files[file], pil_processor)
    # Measured: the decoded pixels are equal; DALI keeps float between the passes and so does not clamp there. Maximum 8
    # on photographs, 12 on noise, 19 at the edges of the drawing; mean up to 0.16.
    assert difference.max() < (25 if file[0] in ("drawing", "noise") else 10)
    assert difference.mean() < 0.25
