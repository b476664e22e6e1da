"""scaled_dot_product_attention on GPUs, as learner and tree decoder use it: without cuDNN's kernels.

On Hopper and Blackwell torch asks cuDNN first for attention in half precision, and cuDNN makes a plan for
every new shape, which takes some 0.4 s (modelscope/FunASR#3704, torch 2.11). Histories have any length, so
shapes hardly ever repeat: on an H100 the tree decoder fell to a fifth of its speed in bfloat16 as soon as
lengths were mixed.
"""

import torch


def without_cudnn() -> None:
    """Leave attention in this process to the flash, memory-efficient and plain kernels."""
    torch.backends.cuda.enable_cudnn_sdp(False)
