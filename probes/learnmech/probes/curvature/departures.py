"""What stands between the loss and the optimizer: there the Hessian of the loss is not all that moves the weights."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from learnmech.probes.foreign import ADDED, GRADIENT, foreign

NAMED = 3
"""So many names are given of each kind."""


def departures(model: nn.Module, parameters: Mapping[str, Tensor]) -> str:
    """Say where training steps along something else than the gradient of the loss, or moves weights by other means.

    - A hook on a parameter (`register_hook`, `register_post_accumulate_grad_hook`) may change the gradient that the
      optimizer sees. Curvature is that of the loss: hooks of the training's tensors are not on the measurement's.
    - `nn.Embedding(max_norm=...)` shortens rows in the forward pass, a projection that no derivative knows of.

    A hook on a tensor inside the forward pass is different: it is part of every backward pass, those of a measurement
    too, and a wrong derivative that it makes is found like any other.

    Args:
        model: The model as it is trained.
        parameters: Its trainable parameters by name.

    Returns:
        A sentence, '' if there is nothing of the kind.
    """
    hooked = [name for name, p in parameters.items() if foreign(p, GRADIENT, ADDED)]
    shortened = [
        f"{name or type(module).__name__}.max_norm={module.max_norm:g}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    ]
    found = []
    if hooked:
        found.append(
            f"hooks on {_some(hooked)} may change the gradient that the optimizer sees: curvature is that of the loss "
            "without them"
        )
    if shortened:
        found.append(
            f"{_some(shortened)} shortens weights in the forward pass: curvature is that of the loss at the shortened "
            "weights, without the projection"
        )
    return "; ".join(found)


def _some(names: Iterable[str]) -> str:
    named = list(names)
    return ", ".join(named[:NAMED]) + (" and others" if len(named) > NAMED else "")
