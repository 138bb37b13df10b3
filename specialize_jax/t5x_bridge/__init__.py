"""Our objective and features where T5X trains: for teams that run `t5x.train`.

T5X is no dependency, since it installs from git alone: it is imported when a
model is made, and an error says how to install it where it is not.
"""
