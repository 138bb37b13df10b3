"""The project's objective and features for T5X's own trainer, `t5x.train`.

T5X is not a dependency, since it can only be installed from git: it is imported
when a model is built, with an error that says how to install it. The gin files
of `gin_configs/t5x/` bind these functions and classes; `docs/t5x.md` is the
guide.
"""
