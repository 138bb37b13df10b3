"""The mistakes of a dataset file, collected to be reported together."""

import collections
import dataclasses

from specialize_jax import errors

_MAX_PLACES = 5  # lines named for one kind of mistake in one file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
  """A mistake in a file.

  Attributes:
    file: the path of the file.
    line: the line, from 1; 0 for the file as a whole.
    kind: of the mistakes of one kind in one file only the first few are listed,
      and the others are counted.
    text: the mistake, what was expected, and how to correct it.
  """

  file: str
  line: int
  kind: str
  text: str


class Mistakes:
  """Collects mistakes, and raises them as one error."""

  def __init__(self) -> None:
    """Starts with none."""
    self._found: list[Mistake] = []

  def __len__(self) -> int:
    """Returns the number of mistakes."""
    return len(self._found)

  def add(self, file: str, line: int, text: str, *, kind: str = "") -> None:
    """Adds a mistake; without a kind it is always listed."""
    self._found.append(
      Mistake(file=file, line=line, kind=kind or text, text=text)
    )

  def raise_any(self, what: str) -> None:
    """Raises all mistakes as one error, in the order of files and lines.

    Args:
      what: the flag and the file, as the user wrote them.

    Raises:
      ReportError: there is a mistake.
    """
    if not self._found:
      return
    count = len(self._found)
    lines = []
    groups = collections.defaultdict(list)
    files = {one.file: None for one in self._found}  # in the order of reading
    places = {file: number for number, file in enumerate(files)}
    for one in sorted(self._found, key=lambda m: (places[m.file], m.line)):
      groups[one.file, one.kind].append(one)
    for (file, _), group in groups.items():
      for one in group[:_MAX_PLACES]:
        place = f"{file}:{one.line}" if one.line else file
        lines.append(f"{place}: {one.text}")
      more = len(group) - _MAX_PLACES
      if more > 0:
        lines.append(f"{file}: the same in {more:,} more rows")
    plural = "s" if count > 1 else ""
    raise errors.ReportError(f"{what} has {count:,} mistake{plural}", lines)
