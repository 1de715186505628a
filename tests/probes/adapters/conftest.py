"""What tests of adapters share: a tiny language model trained by transformers' Trainer, nothing downloaded."""

import types
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # packages that warn when they are imported
    import transformers
    from accelerate.state import AcceleratorState, GradientState

LENGTH = 8
EXAMPLES = 24


@pytest.fixture(autouse=True)
def _no_accelerator():
    """Accelerate keeps its settings in the process: each test chooses its own."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()


def _model(**settings):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        use_cache=False,
        **settings,
    )
    return transformers.LlamaForCausalLM(config)


def _data(padded=False):
    """Sentences of equal length; some of their labels do not count if `padded`."""
    tokens = torch.randint(0, 17, (EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(2))
    rows = [{"input_ids": row, "labels": row.clone()} for row in tokens]
    for index, row in enumerate(rows if padded else []):
        row["labels"][: index % 5] = -100
    return rows


def _arguments(folder, **settings):
    usual = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "train_sampling_strategy": "sequential",
    }
    return transformers.TrainingArguments(output_dir=str(folder), **usual | settings)


@pytest.fixture
def hugging(tmp_path):
    """`hugging.model()`, `.data()`, `.arguments(**settings)`, `.trainer(callback, ...)`."""

    def trainer(*callbacks, model=None, data=None, kind=transformers.Trainer, more=None, **settings):
        return kind(
            model=model or _model(),
            args=_arguments(tmp_path / "out", **settings),
            train_dataset=data or _data(),
            callbacks=list(callbacks),
            **more or {},
        )

    return types.SimpleNamespace(model=_model, data=_data, trainer=trainer, folder=tmp_path / "out")
