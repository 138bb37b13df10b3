"""What a TPU slice would do with a program, asked without one.

The real TPU compiler runs on any machine (`topology.py`), for the real step
(`programs.py`). What it made is read as text (`hlo_text.py`), its arithmetic
and its traffic are counted (`hlo_cost.py`), and set against what the chips
can do (`plan.py`). Nothing here computes on a device.
"""
