"""The train state, a pure train step, and the training loop.

The step is a pure function of (state, batch): the dropout key is the base key
with the step number folded in, and the learning rate is a function of the step.
A resumed run therefore takes exactly the steps of an uninterrupted one. Only
`loop.py`, and the log and checkpoints that it writes, are stateful.
"""
