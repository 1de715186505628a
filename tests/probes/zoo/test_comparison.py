"""The comparison that every other test of the zoo rests on can fail."""

import pytest
import pytorch_lightning as pl


def test_the_comparison_can_fail(train, same, zoo):
    """A careless monitor that just calls the training step is told apart, or every test above would say nothing."""

    class Careless(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                module.training_step(batch, batch_idx)

    plain, careless = train(zoo.Base), train(zoo.Base, Careless())
    with pytest.raises(AssertionError, match=r"buffers.*differ at batch_start of step 3"):
        same(plain, careless)
