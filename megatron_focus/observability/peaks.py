"""What GPUs can compute at most, as their vendor states it."""

PEAK_TFLOPS = {"A100": 312.0, "H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0}
"""Dense bf16 peak of one device in TFLOP/s, from the vendor's data sheets; the first name that fits counts."""
