"""Train state, one pure step, and the loop around it.

The step is a function of (state, batch) and nothing else: the dropout key is
the base key folded with the step's number, the learning rate a function of
it. So a resumed run takes the very steps that an unbroken one takes. Only
`loop.py` and what it writes hold anything mutable.
"""
