"""Cross-entropy against a full distribution, in row blocks that stay in the processor's cache.

Written out, the loss over a vocabulary of thousands passes a dozen times over a matrix of 100 MB, and on a CPU that
costs more than the matrix products. Here each block's loss and gradient are made while it is in cache.
"""

from __future__ import annotations

from typing import Any

import torch

ROWS = 128
"""Rows a block: 128 x 8192 float32 logits are 4 MB, the size of a level-2 cache."""


class SoftTargetLoss(torch.autograd.Function):
    """Mean over N rows of -sum_v soft[v] * log_softmax(hidden @ weight.T)[v].

    hidden [N, H] in the compute type, weight [V, H] float32, soft [N, V] in the compute type, rows summing to 1.
    Gradients are computed in the forward pass, so it must be followed by a backward pass to be worth its cost.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        count = hidden.shape[0]
        weight_low = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_logits = torch.empty(soft.shape, dtype=hidden.dtype, device=hidden.device)
        loss = hidden.new_zeros((), dtype=torch.float32)
        for h, p, grad_h, grad_l in zip(
            hidden.split(ROWS), soft.split(ROWS), grad_hidden.split(ROWS), grad_logits.split(ROWS), strict=True
        ):
            logits = (h @ weight_low.T).float()
            wanted = p.float()
            norm = logits.logsumexp(-1, keepdim=True)
            loss += norm.sum() - torch.dot(wanted.flatten(), logits.flatten())
            grad_l.copy_(logits.sub_(norm).exp_().sub_(wanted).div_(count))
            torch.mm(grad_l, weight_low, out=grad_h)
        ctx.save_for_backward(grad_hidden, (grad_logits.T @ hidden).float())
        return loss / count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None
