"""What a GPU can compute at most, for model FLOPs utilisation."""

import torch

from megatron_focus.observability.peaks import PEAK_TFLOPS


def device_peak_tflops(device: torch.device) -> float | None:
    """Peak of ``device`` by its name; None where it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
