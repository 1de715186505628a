"""The hyperparameters in force: laws need them, so they are recorded like measurements, whenever they change."""

from learnmech.observables.observable import Kind, Observable, Scale


def _hyperparameter(name: str, symbol: str, unit: str, description: str, scale: Scale = Scale.LINEAR) -> Observable:
    return Observable(name, symbol, unit, description, kind=Kind.HYPERPARAMETER, scale=scale)


HYPERPARAMETERS = (
    _hyperparameter("learning_rate", r"\eta", "1", "Learning rate of the update.", Scale.LOG),
    _hyperparameter("momentum", r"\mu", "1", "Heavy-ball coefficient as torch.optim.SGD and RMSprop apply it."),
    _hyperparameter("dampening", r"\tau", "1", "Dampening of the momentum buffer (torch.optim.SGD)."),
    _hyperparameter("nesterov", r"", "1", "1 if Nesterov momentum is on, else 0."),
    _hyperparameter("beta1", r"\beta_1", "1", "Decay of the first moment (Adam family)."),
    _hyperparameter("beta2", r"\beta_2", "1", "Decay of the second moment (Adam family; alpha of RMSprop)."),
    _hyperparameter("epsilon", r"\varepsilon", "1", "Term added to the denominator of the update.", Scale.LOG),
    _hyperparameter("weight_decay", r"\lambda", "1", "Weight-decay coefficient in PyTorch's convention.", Scale.LOG),
    _hyperparameter(
        "decoupled_weight_decay",
        r"",
        "1",
        "1 if decay is applied to the weights (AdamW), 0 if it is added to the gradient (L2).",
    ),
    _hyperparameter(
        "batch_size", r"B", "examples", "Independent examples per optimizer step, over all ranks and micro-batches."
    ),
    _hyperparameter("budget", r"", "1", "Share of the run's time that probes without a schedule may take together."),
    _hyperparameter("accumulation", r"", "1", "Micro-batches whose gradients are accumulated into one step."),
    _hyperparameter("dataset_size", r"n", "examples", "Examples in the training set, where it is known."),
    _hyperparameter(
        "full_batch", r"", "1", "1 if every step sees the same whole training set, 0 if batches are sampled."
    ),
    _hyperparameter(
        "deterministic_loss",
        r"",
        "1",
        "1 if two evaluations of the loss under different random states agree (no active dropout or augmentation).",
    ),
)
