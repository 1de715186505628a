"""Full-batch gradient descent on digits: sharpness climbs to 2/eta, rides it, and climbs again when eta is halved."""

from collections.abc import Callable

import torch

from learnmech.lab import digits
from learnmech.lab.settings import Descent
from learnmech.probes import Recorder, Sharpness, WeightDynamics, every

NAME = "digits-gd"


def train(
    settings: Descent, *, sink: str, seed: int = 0, project: str = "demo", progress: Callable[[int, float], None]
) -> str:
    """Train and measure.

    Args:
        settings: What to train.
        sink: Where the measurements go.
        seed: Seed of the data's order and of the weights.
        project: Project of the run.
        progress: Told the updates done and the loss before the last one, now and then.

    Returns:
        The run's id.
    """
    data = digits.load(settings.digits, seed)
    model = digits.tanh_network(settings.width, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
    recorder = Recorder(
        model,
        optimizer,
        digits.squared_error,
        [Sharpness(every(settings.every)), WeightDynamics(every(settings.every))],
        sink=sink,
        run=NAME,
        project=project,
        full_batch=True,
        dataset_size=settings.digits,
        tags={"seed": str(seed), "data": "scikit-learn digits"},
    )
    batch = data.batch
    with recorder:
        for step in range(settings.steps):
            if step == settings.halved_at:
                optimizer.param_groups[0]["lr"] = settings.learning_rate / 2
            optimizer.zero_grad()
            loss = digits.squared_error(model, batch)
            torch.autograd.backward(loss)
            recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)
            if step % settings.every == 0 or step == settings.steps - 1:
                progress(step + 1, float(loss.detach()))
    return recorder.run_id
