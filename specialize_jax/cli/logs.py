"""`--log_level`: how much of what the libraries log reaches the terminal."""

import argparse
import logging

_LEVELS = ("debug", "info", "warning", "error")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds `--log_level`."""
  parser.add_argument(
    "--log_level",
    choices=_LEVELS,
    default="warning",
    help="the lowest level of our, JAX's, Orbax's and SeqIO's messages that is "
    "logged on standard error (default: warning)",
  )


def start(flags: argparse.Namespace) -> None:
  """Sets the level of every logger that has none of its own.

  Python shows warnings and above by itself.
  """
  if flags.log_level == "warning":
    return
  from absl import logging as absl_logging

  level = getattr(logging, flags.log_level.upper())
  logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
  logging.getLogger().setLevel(level)
  absl_logging.set_verbosity(flags.log_level)
