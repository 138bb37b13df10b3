"""`specialize launch`: starts a command on every host of a TPU slice."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence

from specialize_jax import errors
from specialize_jax.cli import flag_types, parsers
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.tpu import job_set, launch, slices, tpu_vm, xpk

_EXAMPLE = """examples:
  specialize launch --name=xl --topology=v5e:4x4 --spot \\
    --project=my-project --zone=us-west4-a \\
    --package='specialize-jax @ git+https://github.com/you/specialize-jax' \\
    -- train --gin_file=runs/train.gin --gin.MODEL_DIR=gs://bucket/run
prints the commands that create the slice, install the package, start the run,
show its log and delete the slice. With `--execute resume_until_done` before the
`--`, they are run, again after each preemption. On GKE, from a container image:
  specialize launch --on=gke --name=xl --topology=v5e:4x4 \\
    --image=gcr.io/my-project/specialize \\
    -- train --gin_file=runs/train.gin --gin.MODEL_DIR=gs://bucket/run
With `--on=xpk --cluster=NAME` in place of `--on=gke`, through xpk. The image is
built by the repository's Dockerfile.
Checkpoints must outlive the machines: MODEL_DIR is a bucket or a mounted disk.
"""

_ACTIONS = {
  "tpu_vm": ("create", "install", "start", "logs", "delete"),
  "gke": ("create", "logs", "delete"),
  "xpk": ("create", "logs", "delete"),
}
_MORE_ACTIONS = {
  "tpu_vm": ("describe", "resume_until_done"),
  "gke": ("describe",),
  "xpk": ("describe",),
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
  r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|(?:\A|_)(?:PASS|PAT|AUTH))(?:_|\Z)",
  re.IGNORECASE,
)
# A user with a password in an address, or a token as the user.
_IN_ADDRESS = re.compile(r"\bhttps?://[^/\s@]+@|://[^/\s@:]*:[^/\s@]+@")
_OUTPUTS = ("--gin.MODEL_DIR", "--gin.EVAL_OUTPUT_DIR", "--model_dir")
_OUTPUTS += ("--output", "--outputs", "--output_dir", "--report", "--html")
_OUTPUTS += ("--markdown", "--figures_dir", "--figure")
_SWITCHES = ("", "0", "1", "true", "false")
# Flags of what a command reads, of which one may be a file of this machine.
_READ = ("gin_file", "gin_search_paths", "data_dir", "tfds_data_dir")
_READ += ("dataset", "import")
# Those that take part in a run of several processes.
_MULTI_HOST_COMMANDS = ("train", "eval", "select")


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize launch",
    usage="specialize launch FLAG ... [ACTION ...] -- COMMAND [ARGUMENT ...]",
    description="Starts `specialize COMMAND ARGUMENT ...` on every host of a "
    "TPU slice. Prints the necessary commands; --execute runs them.",
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "actions",
    nargs="*",
    metavar="ACTION",
    help="what to print or do, in order: create, install, start (waits for "
    "the run, and joins one in progress), logs, describe, delete, "
    "resume_until_done (default, for printing only: the life of a run)",
  )
  parser.add_argument(
    "--on",
    choices=tuple(_ACTIONS),
    default="tpu_vm",
    help="TPU VMs through gcloud, or a GKE cluster through kubectl or xpk "
    "(default: tpu_vm)",
  )
  parser.add_argument("--execute", action="store_true", help="run the commands")
  parser.add_argument(
    "--name", required=True, help="the name of the slice and of the run"
  )
  parser.add_argument(
    "--topology",
    required=True,
    metavar="SLICE",
    help="such as v5e:4x4, v5e-16 or v4:2x2x4",
  )
  parser.add_argument(
    "--env",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="an environment variable of the command, such as "
    "JAX_COMPILATION_CACHE_DIR=gs://bucket/compiled, from which a run that "
    "starts again reads its compiled step; may be repeated",
  )
  parser.add_argument(
    "--spot",
    action="store_true",
    help="cheaper chips, which can be preempted at any time",
  )
  _add_tpu_vm_flags(parser)
  _add_gke_flags(parser)
  _add_patience_flags(parser)
  return parser


def _add_tpu_vm_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("TPU VMs")
  group.add_argument(
    "--project",
    default=os.environ.get("CLOUDSDK_CORE_PROJECT", ""),
    help="Google Cloud's (default: $CLOUDSDK_CORE_PROJECT)",
  )
  group.add_argument(
    "--zone",
    default=os.environ.get("CLOUDSDK_COMPUTE_ZONE", ""),
    help="such as us-west4-a (default: $CLOUDSDK_COMPUTE_ZONE)",
  )
  group.add_argument(
    "--queued",
    action="store_true",
    help="create a queued resource, which waits for capacity",
  )
  group.add_argument(
    "--runtime_version",
    metavar="IMAGE",
    help="the image of the hosts (default: that of the chips)",
  )
  group.add_argument(
    "--package",
    default="",
    metavar="WHEEL",
    help="the package to install: a local wheel (`pip wheel --no-deps .`) or a "
    "requirement for pip",
  )
  group.add_argument(
    "--copy",
    action="append",
    default=[],
    metavar="PATH",
    help="a file or folder of this machine that the command reads, such as a "
    "gin file of yours or --data_dir; `install` copies it to the directory in "
    "which the command runs, where it has the last part of its name; may be "
    "repeated",
  )


def _add_gke_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("GKE, and xpk")
  group.add_argument(
    "--image",
    default="",
    help="the container image with specialize-jax, built by the repository's "
    "Dockerfile",
  )
  group.add_argument(
    "--cluster",
    default="",
    metavar="NAME",
    help="with --on=xpk: the cluster, from `xpk cluster create`",
  )
  group.add_argument("--namespace", default="default")
  group.add_argument("--service_account", metavar="NAME")
  group.add_argument(
    "--manifest", metavar="FILE", help="also write the JobSet's manifest"
  )


def _add_patience_flags(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("resume_until_done, and JobSets")
  group.add_argument(
    "--max_failures",
    type=flag_types.whole(1),
    default=5,
    metavar="N",
    help="consecutive failures after which it ends, on GKE restarts in all; "
    "preemptions do not count (default: 5)",
  )
  group.add_argument(
    "--first_wait_seconds",
    type=flag_types.real(at_least=0),
    default=15.0,
    metavar="S",
  )
  group.add_argument(
    "--longest_wait_seconds",
    type=flag_types.real(at_least=0),
    default=600.0,
    metavar="S",
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the commands, or runs them; returns the status of the last one."""
  argv = list(sys.argv[1:] if argv is None else argv)
  flags_argv, arguments = _split(argv)
  flags = build_parser().parse_args(flags_argv)
  actions = _actions(flags)
  _check_place(flags)
  flags.env = dict(map(_variable, flags.env))

  from specialize_jax.tpu import launch, slices

  rented = slices.parse(flags.topology)
  arguments = _with_multi_host(arguments, rented.num_hosts)
  if flags.on == "tpu_vm":
    _check_copied(flags.copy, arguments)
  if flags.on == "gke":
    commands = _on_gke(flags, actions, rented, arguments)
  elif flags.on == "xpk":
    commands = _on_xpk(flags, actions, rented, arguments)
  else:
    vm = _vm(flags, rented)
    if flags.execute and "resume_until_done" in actions:
      return _resume(flags, vm, arguments)
    commands = _on_tpu_vm(flags, actions, vm, arguments)
  if flags.execute:
    return launch.run_all(commands)
  print("\n\n".join(map(launch.as_text, commands)))
  return 0


def _variable(text: str) -> tuple[str, str]:
  """Parses a value of --env; raises UserError if it is no variable."""
  name, is_set, value = text.partition("=")
  if not is_set or not _VARIABLE.fullmatch(name):
    raise errors.UserError(
      f"--env={text} sets no variable: expected NAME=VALUE, such as"
      " --env=JAX_COMPILATION_CACHE_DIR=gs://bucket/compiled"
    )
  is_harmless = name.endswith(("_PATH", "_FILE")) or value.lower() in _SWITCHES
  is_secret = _SECRET.search(name) and not is_harmless
  if is_secret or _IN_ADDRESS.search(value):
    raise errors.UserError(
      f"--env={name} would be printed, and shown among the hosts' processes:"
      " keep it in a file of the image, such as ~/.netrc, or in a secret of the"
      " cluster"
    )
  return name, value


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
  """Our own flags, and the command that the first `--` parts from them."""
  if "--" not in argv:
    return argv, []
  at = argv.index("--")
  return argv[:at], argv[at + 1 :]


def _actions(flags: argparse.Namespace) -> list[str]:
  known = (*_ACTIONS[flags.on], *_MORE_ACTIONS[flags.on])
  for action in flags.actions:
    if action not in known:
      raise errors.UserError(
        f"{action} is not an action of --on={flags.on}: expected "
        f"{', '.join(known)}"
        + (
          "; a JobSet starts again by itself."
          if action == "resume_until_done"
          else "."
        )
      )
  if flags.execute and not flags.actions:
    raise errors.UserError(
      f"--execute does what it is told: give one of {', '.join(known)}."
    )
  if flags.execute and {"resume_until_done"} < {*flags.actions}:
    raise errors.UserError(
      "resume_until_done creates, installs and starts by itself: give it alone."
    )
  return list(flags.actions or _ACTIONS[flags.on])


def _with_multi_host(arguments: list[str], num_hosts: int) -> list[str]:
  """Adds `--multi_host` to a command that runs on several hosts.

  Raises:
    UserError: the command runs on one host alone.
  """
  from specialize_jax.cli import main as cli_main

  is_known = bool(arguments) and arguments[0] in cli_main.COMMANDS
  if num_hosts == 1 or not is_known or "--multi_host" in arguments:
    return arguments
  command, *rest = arguments
  decodes = command != "select" or any(
    flag.startswith(("--evaluate", "--follow")) for flag in rest
  )
  if command not in _MULTI_HOST_COMMANDS or not decodes:
    way_out = (
      "give --evaluate, or run it on this machine"
      if command == "select"
      else "give a --topology of one host, such as v5e:2x4"
    )
    raise errors.UserError(
      f"`specialize {command}` runs on one host, and the slice has {num_hosts}:"
      f" {way_out}"
    )
  return [command, "--multi_host", *rest]


def _required(arguments: list[str]) -> list[str]:
  from specialize_jax.cli import main as cli_main

  if not arguments or arguments[0] not in cli_main.COMMANDS:
    got = f" instead of {arguments[0]!r}" if arguments else ""
    raise errors.UserError(
      f"the command to start is missing{got}: give it after --, such as "
      "-- train --gin_file=runs/train.gin --gin.MODEL_DIR=gs://bucket/run"
    )
  return arguments


def _vm(flags: argparse.Namespace, rented: object) -> tpu_vm.TpuVm:
  from specialize_jax.tpu import tpu_vm

  return tpu_vm.TpuVm(
    name=flags.name,
    slice=rented,
    project=flags.project,
    zone=flags.zone,
    queued=flags.queued,
    spot=flags.spot,
    runtime_version=flags.runtime_version,
    environment=flags.env,
  )


def _package(flags: argparse.Namespace) -> str:
  if not flags.package:
    raise errors.UserError(
      "--package is missing: give a wheel (`pip wheel --no-deps .` makes one) "
      "or a requirement for pip, such as 'specialize-jax @ git+https://...'."
    )
  if _IN_ADDRESS.search(flags.package):
    raise errors.UserError(
      "--package has a user name or a token in its address, which would be"
      " printed, and shown among the hosts' processes: give a wheel instead"
    )
  return flags.package


# Flags of some places alone.
_PLACES = {
  "manifest": ("gke",),
  "service_account": ("gke",),
  "namespace": ("gke",),
  "image": ("gke", "xpk"),
  "cluster": ("xpk",),
  "project": ("tpu_vm", "xpk"),
  "zone": ("tpu_vm", "xpk"),
  "queued": ("tpu_vm",),
  "package": ("tpu_vm",),
  "copy": ("tpu_vm",),
  "runtime_version": ("tpu_vm",),
  "first_wait_seconds": ("tpu_vm",),
  "longest_wait_seconds": ("tpu_vm",),
}


def _check_place(flags: argparse.Namespace) -> None:
  """Raises UserError for a flag that --on does not read."""
  if flags.on == "tpu_vm":
    parsers.check_only_with(
      flags,
      ("max_failures", "first_wait_seconds", "longest_wait_seconds"),
      not flags.actions or "resume_until_done" in flags.actions,
      "resume_until_done",
    )
  for name, places in _PLACES.items():
    wanted = " or ".join(f"--on={place}" for place in places)
    parsers.check_only_with(flags, [name], flags.on in places, wanted)


def _check_copied(copied: Sequence[str], arguments: Sequence[str]) -> None:
  """Checks what is copied, and that what the command reads is.

  Raises:
    UserError: a path of --copy does not exist, or the command reads a file or
      folder of this machine that the hosts will not have under that name.
  """
  for path in copied:
    paths.check("--copy", path, paths.INPUT_PATH.local("gcloud copies it"))
  wholes = [os.path.abspath(path) for path in copied]
  for flag, value in _read(arguments):
    if paths.is_in_bucket(value) or not os.path.exists(value):
      continue  # a bucket's, a packaged file, or a module
    whole = os.path.abspath(value)
    source = next((w for w in wholes if f"{whole}/".startswith(f"{w}/")), None)
    if source is None:
      _check_is_there(flag, value)
      continue
    name = os.path.relpath(whole, os.path.dirname(source))
    if name != os.path.normpath(value):
      raise errors.UserError(
        f"--{flag}={value} is copied to the directory in which the command"
        f" runs: give --{flag}={name}"
      )


def _read(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Yields the flags of a command that name what it reads, and the paths."""
  for argument, following in itertools.pairwise([*arguments, ""]):
    if argument.startswith("--"):
      flag, is_joined, value = argument.removeprefix("--").partition("=")
      for path in (value if is_joined else following).split(","):
        if flag in _READ and path:
          yield flag, path


def _check_is_there(flag: str, value: str) -> None:
  """Raises UserError for an existing path of this machine that no host has."""
  from specialize_jax.cli import gin_files

  first = os.path.normpath(value).split(os.sep)[0]
  is_packaged = flag == "gin_file" and gin_files.is_packaged(value)
  # Absolute paths and those above the run's directory are the hosts' own.
  if first in ("", ".", "..") or is_packaged:
    return
  raise errors.UserError(
    f"--{flag}={value} is of this machine, and the hosts do not have it: add"
    f" --copy={first} before the --, or give its absolute path on the hosts"
  )


def _on_tpu_vm(
  flags: argparse.Namespace,
  actions: list[str],
  vm: tpu_vm.TpuVm,
  arguments: list[str],
) -> list[launch.Command]:
  makers = {
    "create": lambda: [vm.create()],
    "describe": lambda: [vm.describe()],
    "install": lambda: [
      *vm.install(_package(flags)),
      *vm.copy(flags.copy),
    ],
    "start": lambda: [vm.start(_required(arguments))],
    "logs": lambda: [vm.logs()],
    "delete": lambda: [vm.delete()],
  }
  # Printed, it is what is done again and again.
  makers["resume_until_done"] = lambda: [
    command
    for step in ("describe", "delete", "create", "install", "start")
    for command in makers[step]()
  ]
  return [command for action in actions for command in makers[action]()]


def _resume(
  flags: argparse.Namespace, vm: tpu_vm.TpuVm, arguments: list[str]
) -> int:
  from specialize_jax.tpu import resume

  _check_outlives(arguments, "a preempted slice")
  return resume.resume_until_done(
    vm,
    package=_package(flags),
    copied=flags.copy,
    arguments=_required(arguments),
    patience=resume.Patience(
      max_failures=flags.max_failures,
      first_wait_seconds=flags.first_wait_seconds,
      longest_wait_seconds=flags.longest_wait_seconds,
    ),
  )


def _check_outlives(arguments: Sequence[str], owner: str) -> None:
  """Raises UserError for an output on a disk that is deleted with `owner`."""
  for argument, following in itertools.pairwise([*arguments, ""]):
    name, is_whole, value = argument.partition("=")
    where = (value if is_whole else following).strip("'\"")
    # `%NAME` is a macro, whose value is not looked up.
    if name in _OUTPUTS and where and not where.startswith(("/", "gs://", "%")):
      raise errors.UserError(
        f"{name}={where} is on the hosts' own disks, which are deleted with"
        f" {owner}: give a bucket, such as {name}=gs://bucket/run, or the path"
        " of a mounted disk"
      )


def _on_gke(
  flags: argparse.Namespace,
  actions: list[str],
  rented: object,
  arguments: list[str],
) -> list[launch.Command]:
  from specialize_jax.tpu import job_set

  run = job_set.JobSet(
    name=flags.name,
    slice=rented,
    image=flags.image,
    namespace=flags.namespace,
    spot=flags.spot,
    max_restarts=flags.max_failures,
    service_account=flags.service_account,
    environment=flags.env,
  )
  if flags.manifest is not None:
    paths.check("--manifest", flags.manifest, paths.OUTPUT_FILE)
    from specialize_jax.files import locks

    with locks.file(flags.manifest, "--manifest"):
      _write_manifest(flags.manifest, run, _required(arguments))
  return _commands_of(run, actions, arguments)


def _on_xpk(
  flags: argparse.Namespace,
  actions: list[str],
  rented: slices.Slice,
  arguments: list[str],
) -> list[launch.Command]:
  from specialize_jax.tpu import xpk

  run = xpk.Workload(
    name=flags.name,
    slice=rented,
    image=flags.image,
    cluster=flags.cluster,
    project=flags.project,
    zone=flags.zone,
    spot=flags.spot,
    max_restarts=flags.max_failures,
    environment=flags.env,
  )
  return _commands_of(run, actions, arguments)


def _commands_of(
  run: job_set.JobSet | xpk.Workload,
  actions: list[str],
  arguments: list[str],
) -> list[launch.Command]:
  """Returns the commands of a cluster's run, one an action."""
  if "create" in actions:
    _check_outlives(arguments, "a pod")
  makers = {
    "create": lambda: run.create(_required(arguments)),
    "describe": run.describe,
    "logs": run.logs,
    "delete": run.delete,
  }
  return [makers[action]() for action in actions]


def _write_manifest(
  path: str, run: job_set.JobSet, arguments: list[str]
) -> None:
  from specialize_jax.files import writing
  from specialize_jax.tpu import job_set

  writing.write_text(path, job_set.to_yaml(run.manifest(arguments)))


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("launch", sys.argv[1:]))
