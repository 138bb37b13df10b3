"""What a long run holds on to: memory, threads, descriptors and disk.

  python bench/long_run.py --output=long_run.json --figure=docs/long_run.png

trains a T5 of a few thousand parameters on the mini world for `--num_steps`,
with an evaluation and a checkpoint every hundred, and samples its own process
after every checkpoint: what grows from one to the next would end a run of
weeks. Prints the growth over the second half of the run, per thousand steps,
which a start-up has no part in; the files that a run is meant to write
(metrics, TensorBoard events, predictions) are counted apart from checkpoints.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

EVERY = 100


def main(argv):
  """Trains, and writes and prints what was sampled."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--num_steps", type=int, default=5000)
  parser.add_argument("--output", default="long_run.json")
  parser.add_argument("--figure", default="long_run.png")
  flags = parser.parse_args(argv)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  output = pathlib.Path(flags.output)
  with tempfile.TemporaryDirectory() as folder:
    samples = run(pathlib.Path(folder), flags.num_steps, output)
  write(samples, output)
  draw(samples, flags.figure)
  print(json.dumps(growth(samples), indent=1))


def write(samples, output):
  """Writes the samples and their growth; a run that ends early keeps them."""
  found = {"growth_per_thousand_steps": growth(samples), "samples": samples}
  output.write_text(json.dumps(found, indent=1) + "\n")


def run(folder, num_steps, output):
  """Trains; returns a sample after each checkpoint, and writes them."""
  from specialize_jax.cli import registered_tasks

  registered_tasks.register(None, None)
  from specialize_jax.data import sources
  from specialize_jax.losses import distillation
  from specialize_jax.mini import world
  from specialize_jax.runs import experiment
  from specialize_jax.t5 import config as t5_config
  from specialize_jax.training import loop, optimizer

  names = world.WorldConfig.__dataclass_fields__
  sizes = {
    name: 20
    for name in names
    if name.endswith("_size") and not name.endswith("vocab_size")
  }
  world.build(
    folder,
    seed=0,
    config=world.WorldConfig(
      **sizes, student_vocab_size=300, samples_per_question=2
    ),
  )
  sources.set_data_dir(folder)
  lengths = {"inputs": 64, "targets": 32}
  run_dir = folder / "run"
  experiment_ = experiment.Experiment(
    model_dir=os.fspath(run_dir),
    model=t5_config.T5Config(
      vocab_size=384,
      embed_dim=16,
      mlp_dim=16,
      num_heads=2,
      head_dim=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
      mlp_activations=("gelu", "linear"),
      tied_head=False,
      dtype="float32",
    ),
    mixture_or_task_name="mini_facts_v1",
    task_feature_lengths=lengths,
    batch_size=4,
    loss=distillation.LossConfig(num_chunks=1),
    optimizer=optimizer.OptimizerConfig(learning_rate=1e-3),
    loop=loop.LoopConfig(
      num_steps=num_steps,
      log_every=10,
      eval_every=EVERY,
      checkpoint_every=EVERY,
    ),
    evaluations=[
      experiment.Evaluation(
        mixture_or_task_name="mini_svamp_zero_shot_chain_of_thought_v1",
        task_feature_lengths=lengths,
        batch_size=8,
        max_new_tokens=4,
        num_examples=8,
      )
    ],
    keep=3,
  )
  sampler = Sampler(run_dir, output)
  sampler.start()
  experiment.train(experiment_)
  sampler.ended.set()
  sampler.join()
  return sampler.samples


class Sampler(threading.Thread):
  """Samples this process whenever another hundred steps are logged."""

  def __init__(self, run_dir, output):
    super().__init__(name="sampler", daemon=True)
    self.samples, self.ended = [], threading.Event()
    self._run_dir, self._output = run_dir, output
    self._began = time.monotonic()

  def run(self):
    """Looks at the log every so often."""
    while not self.ended.wait(0.2):
      step = _last_step(self._run_dir / "metrics.jsonl")
      if step >= EVERY * (1 + len(self.samples)):
        self.samples.append(self._sample(step))
        if len(self.samples) > 3:
          write(self.samples, self._output)

  def _sample(self, step):
    checkpoints = others = 0
    for file in self._run_dir.rglob("*"):
      try:
        size = file.stat().st_size if file.is_file() else 0
      except FileNotFoundError:
        continue  # cleared away meanwhile
      if "checkpoints" in file.parts:
        checkpoints += size
      else:
        others += size
    return {
      "step": step,
      "seconds": round(time.monotonic() - self._began, 1),
      "memory_mib": _resident_mib(),
      "threads": len(os.listdir("/proc/self/task")),
      "descriptors": len(os.listdir("/proc/self/fd")),
      "checkpoints_mib": checkpoints / 2**20,
      "other_files_mib": others / 2**20,
    }


def _last_step(path):
  try:
    with path.open("rb") as stream:
      stream.seek(max(0, path.stat().st_size - 4096))
      lines = stream.read().splitlines()
    return json.loads(lines[-1])["step"]
  except (FileNotFoundError, IndexError, ValueError):
    return 0


def _resident_mib():
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGESIZE") / 2**20


def growth(samples):
  """The slope of each figure over the second half, per thousand steps."""
  import numpy as np

  half = samples[len(samples) // 2 :]
  steps = [sample["step"] / 1000 for sample in half]
  return {
    name: round(float(np.polyfit(steps, [s[name] for s in half], 1)[0]), 3)
    for name in samples[0]
    if name != "step"
  }


def draw(samples, path):
  """Plots every figure over the steps."""
  from specialize_jax.reports import drawing

  panels = {
    "memory_mib": "resident\nmemory, MiB",
    "threads": "threads",
    "descriptors": "file\ndescriptors",
    "checkpoints_mib": "checkpoints\non disk, MiB",
    "other_files_mib": "log and\npredictions, MiB",
  }
  from matplotlib import figure

  made = figure.Figure(figsize=(8, 9), layout="constrained")
  axes = made.subplots(len(panels), sharex=True)
  steps = [sample["step"] for sample in samples]
  for axis, (name, label) in zip(axes, panels.items(), strict=True):
    axis.plot(steps, [s[name] for s in samples], color=drawing.BLUE)
    axis.set_ylim(bottom=0)
    axis.set_ylabel(label)
    axis.grid(color=drawing.LINE)
  axes[-1].set_xlabel("step")
  made.savefig(path, dpi=100)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
