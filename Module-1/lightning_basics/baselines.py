"""What a model must beat: the most frequent class, and logistic regression on a bag of characters."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def majority_accuracy(train_labels: Int[Tensor, " lines"], val_labels: Int[Tensor, " val_lines"]) -> float:
    """Validation accuracy of always answering the training lines' most frequent class."""
    return (val_labels == train_labels.mode().values).double().mean().item()


def logistic_regression(
    features: Float[Tensor, "lines features"], labels: Int[Tensor, " lines"], num_classes: int, decay: float = 1e-5
) -> nn.Linear:
    """Multinomial logistic regression, fitted to convergence by L-BFGS from zero: the same every time.

    Args:
        features, labels: training data.
        num_classes: outputs of the linear layer that is returned.
        decay: factor of the squared weights in the loss.
    """
    model = nn.Linear(features.size(1), num_classes)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(features), labels) + decay * model.weight.square().sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return model
