"""What a GPU can compute at most, for model FLOPs utilisation and for plans."""

import torch

PEAK_TFLOPS = {"A100": 312.0, "H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0}
"""Dense bf16 peak of one device in TFLOP/s, from the vendor's data sheets; the first name that fits counts."""


def device_peak_tflops(device: torch.device) -> float | None:
    """Peak of ``device`` by its name; None where it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
