"""The parser of every command: exact flags, errors in one sentence, hints.

argparse prints its usage before each error. Here an error is one sentence and,
for a misspelt flag, suggests the right one.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from specialize_jax import errors


class Parser(argparse.ArgumentParser):
  """An `argparse.ArgumentParser` with the conventions of all commands.

  Flags are not abbreviated, an epilog keeps its line breaks, and an error ends
  the process with one sentence and status 2.
  """

  def __init__(self, **settings: Any) -> None:
    """Takes the arguments of `argparse.ArgumentParser`."""
    settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
    super().__init__(allow_abbrev=False, **settings)

  def parse_args(
    self,
    args: Sequence[str] | None = None,
    namespace: argparse.Namespace | None = None,
  ) -> argparse.Namespace:
    """Parses all arguments; one that is not known ends the process.

    Returns:
      The flags. Their attribute `given` has the names of those that were on the
      command line, without dashes, for `check_only_with`.
    """
    args = list(sys.argv[1:] if args is None else args)
    given = set()
    # Before argparse finds that a required flag, the one misspelt, is missing.
    for argument in args[: args.index("--")] if "--" in args else args:
      name, _, _ = argument.partition("=")
      if name.startswith("--") and name not in self._option_string_actions:
        self.error(self._unknown(argument))
      given.add(name.removeprefix("--"))
    flags, unknown = self.parse_known_args(args, namespace)
    if unknown:
      self.error(self._unknown(unknown[0]))
    flags.given = frozenset(given)
    return flags

  def error(self, message: str) -> NoReturn:
    """Prints one sentence on standard error and exits with status 2."""
    self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

  def flags(self) -> list[str]:
    """Returns the names of all flags, as they are written."""
    return [
      name
      for name in self._option_string_actions
      if name.startswith("--") and "=" not in name
    ]

  def _unknown(self, argument: str) -> str:
    name, _, _ = argument.partition("=")
    see = f"`{self.prog} --help` lists what it takes"
    if name.startswith("--gin."):
      return f"{argument} is not a binding: write {name}=VALUE, without a space"
    has_gin = "--gin_file" in self._option_string_actions
    if has_gin and name in ("--gin_bindings", "--gin_param"):
      return f"{name} is not a flag of {self.prog}: write --gin.NAME=VALUE"
    if has_gin and name.removeprefix("--").isupper():
      return f"{name} is a gin macro: write --gin.{argument.removeprefix('--')}"
    if not name.startswith("-"):
      return f"{argument!r} is not expected here; {see}"
    hint = errors.did_you_mean(
      name.replace("-", "_").replace("__", "--", 1), self.flags()
    )
    return f"{name} is not a flag of {self.prog}; {hint or see}"


def check_only_with(
  flags: argparse.Namespace, names: Iterable[str], applies: bool, where: str
) -> None:
  """Raises UserError for flags that were given and would be ignored.

  Args:
    flags: from `Parser.parse_args`.
    names: the names of the flags, without dashes.
    applies: whether this call of the command reads them.
    where: what they go with, such as "--on=gke".
  """
  ignored = [f"--{name}" for name in names if name in flags.given]
  if ignored and not applies:
    go = "go" if len(ignored) > 1 else "goes"
    raise errors.UserError(f"{', '.join(ignored)} {go} with {where} alone.")
