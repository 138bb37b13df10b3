"""Lists the macros of gin files with their defaults, for `--help`.

Files are read by gin's own parser and not run: nothing that they import is
imported, and nothing that they call is called.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_COMMENT = re.compile(r"#\s*(?P<text>[^\"']*)$")
# A line of a file's header, such as "#   MODEL_DIR   where checkpoints go".
_HEADER = re.compile(r"^#\s{2,}(?P<name>[A-Z][A-Z0-9_]*)\s{2,}(?P<text>.*)$")
_WIDTH = 38


@dataclasses.dataclass(kw_only=True)
class Macro:
  """A macro of some gin files.

  Attributes:
    name: such as "BATCH_SIZE".
    default: its value as gin writes it; None if it is required.
    what: its comment in the files; without one, the parameters that it sets.
  """

  name: str
  default: str | None
  what: str = ""


@dataclasses.dataclass(frozen=True)
class _Written:
  """A reference, written as in the file: "@LossConfig()" or "%MODEL_DIR"."""

  text: str

  def __repr__(self) -> str:
    return self.text


def read(
  files: Sequence[str], text_of: Callable[[str], str | None]
) -> list[Macro]:
  """Reads the macros of gin files and of the files that they include.

  Args:
    files: names of the files, in order; later ones override earlier ones.
    text_of: returns the text of a file by name; None if there is no such file.

  Returns:
    The macros, required ones first, otherwise in the order of the files.
  """
  macros: dict[str, Macro] = {}
  parameters: dict[str, list[str]] = {}
  seen: set[str] = set()

  def text_once(file: str) -> str | None:
    """Returns a file's text the first time: files may include each other."""
    if file in seen:
      return None
    seen.add(file)
    return text_of(file)

  for file in files:
    _read(file, text_once, macros, parameters)
  for name, macro in macros.items():
    macro.what = macro.what or ", ".join(parameters.get(name, []))
  return sorted(macros.values(), key=lambda macro: macro.default is not None)


def listing(macros: Sequence[Macro]) -> str:
  """Formats macros as a section of a command's help."""
  lines = ["gin macros, set as --gin.NAME=value, and their defaults:"]
  for macro in macros:
    default = "required" if macro.default is None else macro.default
    shown = f"{macro.name} = {default}"
    if len(shown) > _WIDTH:
      shown = f"{shown[: _WIDTH - 3]}..."
    lines.append(f"  {shown.ljust(_WIDTH)}  {macro.what}")
  return "\n".join(line.rstrip() for line in lines)


def _read(
  file: str,
  text_of: Callable[[str], str | None],
  macros: dict[str, Macro],
  parameters: dict[str, list[str]],
) -> None:
  from gin import config_parser

  class Delegate(config_parser.ParserDelegate):
    """Builds no object of what is referred to."""

    def configurable_reference(self, name: str, evaluate: bool) -> _Written:
      return _Written(f"@{name}{'()' if evaluate else ''}")

    def macro(self, name: str) -> _Written:
      return _Written(f"%{name}")

  text = text_of(file)
  if text is None:
    return
  comments = {
    found["name"]: found["text"]
    for line in text.splitlines()
    if (found := _HEADER.match(line))
  }
  for statement in config_parser.ConfigParser(text, Delegate()):
    if isinstance(statement, config_parser.IncludeStatement):
      _read(statement.filename, text_of, macros, parameters)
    elif not isinstance(statement, config_parser.BindingStatement):
      continue
    elif statement.arg_name:
      owner = statement.selector.rpartition(".")[2]
      parameters.setdefault(repr(statement.value).lstrip("%"), []).append(
        f"{owner}.{statement.arg_name}"
      )
    elif _NAME.fullmatch(statement.selector):
      name, value = statement.selector, repr(statement.value)
      comment = _COMMENT.search(statement.location.line_content)
      what = comment["text"].strip() if comment else comments.get(name, "")
      earlier = macros.get(name)
      macros[name] = Macro(
        name=name,
        default=None if value == "%gin.REQUIRED" else value,
        what=what or (earlier.what if earlier else ""),
      )
