import torch

from data_pipeline.row import IGNORE_INDEX, empty_row


def test_empty_row_has_no_loss_and_no_image(small_geometry):
    row = empty_row(7, small_geometry)
    assert row.tokens.tolist() == [7] and row.labels.tolist() == [IGNORE_INDEX]
    assert row.loss_tokens == 0 and row.num_samples == 1 and row.user_turn.tolist() == [-1]
    assert row.tiles.shape == (0, 3, 112, 112) and row.grids.shape == (0, 2) and row.image_sizes.shape == (0, 2)
    dtypes = {name: tensor.dtype for name, tensor in row.tensors().items()}
    assert dtypes == {
        "tokens": torch.int64,
        "labels": torch.int64,
        "user_turn": torch.int64,
        "cu_seqlens": torch.int32,
        "tiles": torch.uint8,
        "grids": torch.int32,
        "image_sizes": torch.int32,
        "sample_keys": torch.int64,
    }
