"""What the data path can do, alone and with this model."""

from data_pipeline.conversations.rendering import TEMPLATE_NAMES
from data_pipeline.decoding.probe import MAX_IMAGE_PIXELS
from data_pipeline.loading.ordering import SHUFFLES
from megatron_focus.config.checks.choices import one_of
from megatron_focus.config.schema import RunConfig


def data_problems(config: RunConfig) -> list[str]:
    """One sentence for each setting of the data path that does not fit."""
    data = config.data
    problems = one_of("data.shuffle", data.shuffle, SHUFFLES)
    problems += one_of("data.packing_estimate", data.packing_estimate, ("running", "baseline"))
    problems += one_of("data.on_bad_sample", data.on_bad_sample, ("error", "skip"))
    problems += one_of("data.decoder", data.decoder, ("cpu", "dali"))
    if data.cache_gib is not None and data.cache_dir is None:
        problems.append(f"data.cache_gib={data.cache_gib} bounds data.cache_dir, which is not set")
    if data.cache_dir is not None and data.path is not None and "://" not in data.path:
        problems.append(f"data.cache_dir={data.cache_dir} is for a data.path that is a URL, not {data.path}: unset it")
    problems += one_of("data.chat_template", data.chat_template, TEMPLATE_NAMES)
    if config.model.image.max_image_pixels > MAX_IMAGE_PIXELS:
        problems.append(
            f"model.image.max_image_pixels={config.model.image.max_image_pixels} is more than Pillow opens: "
            f"{MAX_IMAGE_PIXELS} at most"
        )
    if data.rows_multiple_of > config.training.global_batch_size:
        problems.append(
            f"data.rows_multiple_of={data.rows_multiple_of} exceeds training.global_batch_size="
            f"{config.training.global_batch_size}: a row has at least one sample"
        )
    if data.max_sequence_length > config.model.language.max_position_embeddings:
        problems.append(
            f"data.max_sequence_length={data.max_sequence_length} exceeds "
            f"model.language.max_position_embeddings={config.model.language.max_position_embeddings}"
        )
    return problems
