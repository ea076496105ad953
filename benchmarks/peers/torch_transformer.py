"""An attention-only transformer in PyTorch: one seed in a Python loop, and an ensemble by torch.func.

The network, its weights and their names are those of `icldyn.models.transformer` with positions="shortformer"; layers are
stacked along the first axis, (layers, H, ...). The loss is the mean cross-entropy of the next token; Adam.
"""

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

BETAS, EPS = (0.9, 0.999), 1e-8


def loss(weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of sequences (B, T + 1)."""
    x, place = F.embedding(tokens[:, :-1], weights["W_E"]), weights["W_pos"]
    for W_Q, W_K, W_V, W_O in zip(*(weights[name] for name in ("W_Q", "W_K", "W_V", "W_O")), strict=True):
        seen = x + place
        q, k = (torch.einsum("btd,hde->bhte", seen, W) for W in (W_Q, W_K))
        v = torch.einsum("btd,hde->bhte", x, W_V)
        x = x + torch.einsum("bhte,hed->btd", F.scaled_dot_product_attention(q, k, v, is_causal=True), W_O)
    return F.cross_entropy((x @ weights["W_U"]).flatten(0, 1), tokens[:, 1:].flatten())


def loop(weights: dict[str, torch.Tensor], steps: int, lr: float, batch) -> list[float]:
    """One seed with torch.optim.Adam; `batch` (step) -> tokens (B, T + 1). Returns the losses."""
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    optimiser, losses = torch.optim.Adam(weights.values(), lr=lr, betas=BETAS, eps=EPS, foreach=True), []
    for step in range(steps):
        optimiser.zero_grad()
        value = loss(weights, batch(step))
        value.backward()
        optimiser.step()
        losses.append(value.item())
    return losses


def ensemble(weights: dict[str, torch.Tensor], steps: int, lr: float, batch) -> dict[str, torch.Tensor]:
    """S seeds at once, weights (S, ...), by vmap over grad and Adam on the stacks; `batch` (step) -> (S, B, T + 1)."""
    slope, held = vmap(grad(loss)), list(weights.values())
    optimiser = torch.optim.Adam(held, lr=lr, betas=BETAS, eps=EPS, foreach=True)
    for step in range(steps):
        grads = slope(weights, batch(step))
        for name, w in weights.items():
            w.grad = grads[name]
        optimiser.step()
    return weights
