"""What GPUs can do at most: the figures that a plan reckons with."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Dense bfloat16 peak in FLOP/s (without sparsity) and memory in bytes, as the vendor's data sheet has them."""

    name: str
    peak: float
    memory: float


GPUS = {
    "a100": Gpu("A100 80GB SXM", 312e12, 80e9),  # NVIDIA A100 data sheet
    "h100": Gpu("H100 SXM", 989e12, 80e9),  # NVIDIA H100 data sheet, half of the figure with sparsity
    "h200": Gpu("H200 SXM", 989e12, 141e9),  # NVIDIA H200 data sheet, half of the figure with sparsity
    "b200": Gpu("B200", 2250e12, 180e9),  # NVIDIA DGX B200 data sheet, an eighth, half of the figure with sparsity
    "l40s": Gpu("L40S", 362e12, 48e9),  # NVIDIA L40S data sheet, without sparsity
    "l4": Gpu("L4", 121e12, 24e9),  # NVIDIA L4 data sheet, half of the figure with sparsity
    "mi300x": Gpu("MI300X", 1307e12, 192e9),  # AMD Instinct MI300X data sheet, without sparsity
}
