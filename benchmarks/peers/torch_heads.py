"""Merged attention of H heads in PyTorch, linear and softmax: one seed in a Python loop, and an ensemble by torch.func.

Weights are "value" and "key_query" (H, D+1, D+1). Tokens z (P, N+1, D+1), the query last, its label 0; logits of head h are
z_q^T M_h z_m. Linear: sums divided by N, the query its own key. Softmax: over the context. The loss is the mean square without
the 1/2.
"""

import torch
from torch.func import grad, vmap


def all_tokens(weights: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """The last entry of the query's output, every token's output computed, as attention code has it."""
    scores = torch.einsum("pmi,hij,pnj->phmn", z, weights["key_query"], z) / (z.shape[1] - 1)
    out = torch.einsum("phmn,pnj,hij->pmi", scores, z, weights["value"])
    return out[:, -1, -1]


def query_only(weights: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """The same number from the query's row alone."""
    scores = torch.einsum("pi,hij,pnj->phn", z[:, -1], weights["key_query"], z) / (z.shape[1] - 1)
    values = torch.einsum("pnj,hj->pnh", z, weights["value"][:, -1])
    return torch.einsum("phn,pnh->p", scores, values)


def softmax_all_tokens(weights: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """The query's answer of softmax attention to the context, every token's output computed."""
    scores = torch.einsum("pmi,hij,pnj->phmn", z, weights["key_query"], z[:, :-1]).softmax(-1)
    out = torch.einsum("phmn,pnj,hij->pmi", scores, z[:, :-1], weights["value"])
    return out[:, -1, -1]


def softmax_query_only(weights: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """The same number from the query's row alone."""
    scores = torch.einsum("pi,hij,pnj->phn", z[:, -1], weights["key_query"], z[:, :-1]).softmax(-1)
    values = torch.einsum("pnj,hj->pnh", z[:, :-1], weights["value"][:, -1])
    return torch.einsum("phn,pnh->p", scores, values)


def fresh(s: torch.Tensor, batch: int, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, N+1, D+1) and labels (B,) of new prompts, x ~ N(0, diag s), w ~ N(0, I)."""
    x = torch.randn(batch, N + 1, s.numel()) * s.sqrt()
    y = torch.einsum("pnd,pd->pn", x, torch.randn(batch, s.numel()))
    z = torch.cat([x, y[..., None]], dim=2)
    z[:, -1, -1] = 0
    return z, y[:, -1]


def loop(weights, steps: int, lr: float, batch, answer=all_tokens) -> list[float]:
    """One seed, step by step with torch.optim.SGD; `batch` (step) -> tokens and labels. Returns the losses."""
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    optimiser, losses = torch.optim.SGD(weights.values(), lr=lr), []
    for step in range(steps):
        z, y = batch(step)
        optimiser.zero_grad()
        loss = ((answer(weights, z) - y) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def ensemble(weights, steps: int, lr: float, batch, shared: bool, answer=query_only):
    """S seeds at once (weights stacked along the first axis) by vmap over grad, the best use of torch.func found."""

    def loss(weights, z, y):
        return ((answer(weights, z) - y) ** 2).mean()

    slope = vmap(grad(loss), in_dims=(0, None, None) if shared else (0, 0, 0))
    for step in range(steps):
        grads = slope(weights, *batch(step))
        weights = {name: w - lr * grads[name] for name, w in weights.items()}
    return weights
