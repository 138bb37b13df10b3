"""`specialize plan`: memory and speed on a TPU slice, without a TPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import typing
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cli import (
  devices,
  flag_types,
  gin_files,
  logs,
  parsers,
  registered_tasks,
)
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.t5 import config as t5_config
  from specialize_jax.tpu import plan, programs

_EXAMPLE = """example (minutes; each mesh is compiled by the real TPU compiler):
  specialize plan --model=flan_t5_xl --topology=v5e:4x4 --mesh=fsdp=16 \\
    --batch_size=128 --input_length=768 --target_length=256 --remat=minimal
needs the TPU compiler, no TPU: pip install 'specialize-jax[plan]'
"""
_FIGURES = (".png", ".svg")


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize plan",
    description="Compiles the real step for a TPU slice, without the slice, "
    "and shows for each mesh the memory, arithmetic and traffic of a chip, "
    "with lower bounds of their times.",
    epilog=_EXAMPLE,
  )
  _add_job(parser)
  _add_slice(parser.add_argument_group("where it runs"))
  parser.add_argument(
    "--output", metavar="FILE.json", help="also write the rows, as a list"
  )
  parser.add_argument(
    "--figure", metavar="FILE.png", help="also draw them, as .png or .svg"
  )
  parser.add_argument(
    "--write_topology",
    metavar="FILE.gin",
    help="also write the best mesh as a gin file of a topology, such as those "
    "of gin_configs/topologies, with the estimates that it was chosen by",
  )
  parser.add_argument(
    "--breakdown",
    action="store_true",
    help="also print and draw the HBM traffic, operations and communication of "
    "each part of the network",
  )
  gin_files.add_flags(parser, default_file="that of --model")
  logs.add_flags(parser)
  return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--model",
    required=True,
    metavar="NAME",
    help="a file of gin_configs/models without its ending, such as flan_t5_xl "
    "or t5_1_0_base, or the path of a gin file",
  )
  parser.add_argument(
    "--step",
    default="train",
    choices=("train", "decode", "both"),
    help="a train step, or a batch encoded and decoded (default: train)",
  )
  for name, default, what in (
    ("batch_size", 128, "rows of a global batch"),
    ("input_length", 768, "tokens of the encoder's rows"),
    ("target_length", 256, "tokens of the decoder's rows"),
    ("microbatches", 1, "microbatches of a batch, one after the other"),
    ("loss_chunks", None, "chunks of the loss along --loss_chunk_axis"),
    ("train_steps", None, "length of a run, to compute its hours"),
  ):
    shown = "" if default is None else f" (default: {default})"
    parser.add_argument(
      f"--{name}",
      type=flag_types.whole(1),
      default=default,
      metavar="N",
      help=what + shown,
    )
  parser.add_argument(
    "--optimizer",
    default="adafactor",
    choices=("adafactor", "adamw", "muon"),
    help="(default: adafactor)",
  )
  parser.add_argument(
    "--loss_chunk_axis",
    default="vocabulary",
    choices=("vocabulary", "targets"),
    help="the axis that the loss splits into chunks: the vocabulary, or the "
    "target positions (default: vocabulary)",
  )
  parser.add_argument(
    "--remat",
    default="minimal",
    choices=("none", "dots", "minimal", "lean", "full"),
    help="what the backward pass recomputes (default: minimal)",
  )


def _add_slice(group: argparse._ArgumentGroup) -> None:
  group.add_argument(
    "--topology",
    required=True,
    metavar="NAME",
    help="chips along each axis, such as v5e:4x4 or v4:2x2x4, or a slice's "
    "name, such as v5e-16",
  )
  group.add_argument(
    "--mesh",
    action="append",
    metavar="AXIS=N,...",
    help="chips along data, fsdp and model, such as fsdp=8,model=2; may be "
    "repeated (default: every sensible mesh)",
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table, the best mesh first, and writes the files."""
  argv = sys.argv[1:] if argv is None else argv
  flags, bindings = gin_files.parse(build_parser(), argv)
  logs.start(flags)
  gin_files.check_flags(flags)
  paths.check_flags(
    flags,
    {
      "output": paths.OUTPUT_FILE,
      "figure": paths.OUTPUT_FILE,
      "write_topology": paths.OUTPUT_FILE,
    },
  )
  if flags.figure and not flags.figure.endswith(_FIGURES):
    raise errors.UserError(
      f"--figure={flags.figure}: expected a name that ends in .png or .svg."
    )
  written = flags.write_topology
  if written and not written.endswith(".gin"):
    raise errors.UserError(
      f"--write_topology={written}: expected a name that ends in .gin, such as "
      "topologies/v5e-64.gin."
    )
  if written and flags.step == "decode":
    raise errors.UserError(
      "--write_topology chooses the mesh of a train step, and --step=decode "
      "plans none: give --step=train."
    )
  from specialize_jax.files import locks

  outputs = {
    f"--{name}": getattr(flags, name)
    for name in ("output", "figure", "write_topology")
  }
  with locks.files(outputs):
    return _plan(flags, bindings, argv)


def _plan(
  flags: argparse.Namespace, bindings: Sequence[str], argv: Sequence[str]
) -> int:
  # Plans are only compiled: other processes may use this machine's TPU.
  devices.leave_accelerators()

  with registered_tasks.quiet_import():
    from specialize_jax.files import writing
    from specialize_jax.reports import plan_view
    from specialize_jax.tpu import plan, topology, topology_gin
  asked = _request(flags, bindings)
  slice_, config = asked.topology, asked.job.config
  if flags.mesh:
    meshes = [topology.parse_mesh(m, slice_.num_chips) for m in flags.mesh]
  else:
    meshes = topology.sensible_meshes(
      config, batch_size=flags.batch_size, num_chips=slice_.num_chips
    )
  rows = plan.plan(asked, meshes, progress=_say)
  topology_text = no_topology = None
  if flags.write_topology:
    trained = [row for row in rows if row["step"] == "train"]
    try:
      topology_text = topology_gin.text(asked, trained, _without_outputs(argv))
    except errors.UserError as error:
      no_topology = error  # raised after the rows are written and shown
  title = (
    f"{flags.model} on {slice_.name} ({slice_.num_chips} chips): batch "
    f"{flags.batch_size}, {flags.input_length}/{flags.target_length} tokens, "
    f"{flags.optimizer}, remat {flags.remat}"
  )
  # Files are written before anything is printed: printing fails if the pipe is
  # closed, and the rows have taken minutes.
  if flags.output:
    writing.write_text(flags.output, json.dumps(rows, indent=2) + "\n")
  if topology_text is not None:
    writing.write_text(flags.write_topology, topology_text)
  if flags.figure:
    plan_view.write_figure(flags.figure, rows, title)
  print(plan_view.terminal(rows, title))
  if flags.breakdown:
    print(plan_view.breakdown(rows))
  for name, path in (
    ("rows", flags.output),
    ("topology", topology_text and flags.write_topology),
    ("figure", flags.figure),
  ):
    if path:
      print(f"{name}: {path}")
  if no_topology is not None:
    raise no_topology
  return 0


def _without_outputs(argv: Sequence[str]) -> str:
  """Returns the command line without its outputs and `--breakdown`."""
  outputs = ("--output", "--figure", "--write_topology")
  kept, skips = [], False
  for argument in argv:
    name, given, _ = argument.partition("=")
    if not skips and name not in outputs and argument != "--breakdown":
      kept.append(argument)
    skips = name in outputs and not given
  return shlex.join(["specialize", "plan", *kept])


def request(argv: Sequence[str]) -> plan.Request:
  """Returns the request of a command line, without its meshes."""
  return _request(*gin_files.parse(build_parser(), argv))


def _request(
  flags: argparse.Namespace, bindings: Sequence[str]
) -> plan.Request:
  # Libraries and the compiler print many messages about missing hardware.
  with registered_tasks.quiet_import():
    from specialize_jax.tpu import plan, topology

    config = _model(flags, bindings)
    slice_ = topology.load(flags.topology)
  return plan.Request(
    job=_job(flags, config),
    topology=slice_,
    steps=plan.STEPS if flags.step == "both" else (flags.step,),
    train_steps=flags.train_steps,
    breakdown=flags.breakdown,
  )


def _model(
  flags: argparse.Namespace, bindings: Sequence[str]
) -> t5_config.T5Config:
  """Builds the network's configuration from its gin file and overrides."""
  from specialize_jax.t5 import config as t5_config

  named = not flags.model.endswith(".gin")
  path = f"models/{flags.model}.gin" if named else flags.model
  files = argparse.Namespace(
    gin_file=[path, *(flags.gin_file or [])],
    gin_search_paths=flags.gin_search_paths,
    default_gin_file=path,
  )
  try:
    gin_files.check_files([path], flags.gin_search_paths, "--model")
  except errors.UserError as error:
    if not named or not str(error).startswith("--model"):
      raise
    raise errors.UserError(
      f"--model={flags.model} is not a file in gin_configs/models: expected "
      "one such as flan_t5_base, flan_t5_xl or t5_1_0_large, or the path of a "
      "file that ends in .gin."
    ) from error
  given = dict(binding.split(" = ", 1) for binding in bindings)
  macro = "REMAT_POLICY"
  if macro in given:  # which the topologies set, and no model
    policy = given[macro].strip("'\"")
    if policy not in t5_config.REMAT_POLICIES:
      policy = f"one of {', '.join(t5_config.REMAT_POLICIES)}"
    raise errors.UserError(
      f"--gin.{macro} is --remat here: give --remat={policy}"
    )
  with gin_files.loaded(files, bindings):
    config = gin_files.configured(t5_config.T5Config)()
  policy = "T5Config.remat_policy"
  if any(name.endswith(policy) for name in given):
    raise errors.UserError(
      f"--gin.{policy} is --remat here: give --remat={config.remat_policy}"
    )
  return dataclasses.replace(config, remat_policy=flags.remat)


def _job(flags: argparse.Namespace, config: t5_config.T5Config) -> programs.Job:
  from specialize_jax.losses import distillation
  from specialize_jax.tpu import programs
  from specialize_jax.training import optimizer

  chunks: Mapping[str, int] = (
    {} if flags.loss_chunks is None else {"num_chunks": flags.loss_chunks}
  )
  return programs.Job(
    config=config,
    batch_size=flags.batch_size,
    input_length=flags.input_length,
    target_length=flags.target_length,
    # The learning rate changes neither memory nor time.
    optimizer=optimizer.OptimizerConfig(
      name=flags.optimizer, learning_rate=1e-3
    ),
    loss=distillation.LossConfig(chunk_axis=flags.loss_chunk_axis, **chunks),
    num_microbatches=flags.microbatches,
  )


def _say(text: str) -> None:
  print(f"specialize plan: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("plan", sys.argv[1:]))
