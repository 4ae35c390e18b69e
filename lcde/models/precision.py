"""The precision that networks run in."""

import copy

import torch
from torch import nn


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on devices with instructions for it, otherwise float32."""
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if gains else torch.float32


def as_dtype(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """``network`` itself, or a copy in another ``dtype``; its last layer stays in float32, which answers need."""
    if dtype == torch.float32:
        return network
    network = copy.deepcopy(network).to(dtype)
    network.classifier[-1].float()
    return network
