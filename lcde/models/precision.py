"""The precision that networks run in."""

import copy
from typing import Any

import torch


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on devices with instructions for it, otherwise float32."""
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if gains else torch.float32


def as_dtype(network: Any, dtype: torch.dtype) -> Any:
    """A network itself for float32, else a copy in ``dtype`` whose last layer stays float32 for exact answers."""
    if dtype == torch.float32:
        return network
    network = copy.deepcopy(network).to(dtype)
    network.classifier[-1].float()
    return network
