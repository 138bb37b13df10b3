"""Ahead-of-time compilation for TPU slices, and the runs on them.

The TPU compiler runs on any machine (`topology.py`) and compiles the training
step itself (`programs.py`). The compiled program is parsed (`hlo_text.py`), its
flops and bytes are counted (`hlo_cost.py`) and compared with the peaks of the
chips (`plan.py`). Nothing here computes on a device.
"""
