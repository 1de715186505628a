"""`learnmech doctor`: a dry run that says which probes work for a model and a trainer, by which method, at what cost.

The command starts the script twice, in child processes of its own: once with every probe, once without any. In them the
first training is intercepted (`lightning_fit`, `recorder_loop`), followed for some dozens of updates (`session`), and
stopped. What came out is put together (`findings`) and shown (`report`) in the parent, which imports no torch.
"""
