"""What is wrong with a dataset file, collected until all of it is known."""

import collections
import dataclasses

from specialize_jax import errors

_MAX_PLACES = 5  # of one kind of mistake in one file that are named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
  """Something that is wrong.

  Attributes:
    file: where.
    line: of it, from 1; 0 for the file as a whole.
    kind: mistakes of one kind in one file are named a few times, then counted.
    text: what is wrong, what was expected, and the way out.
  """

  file: str
  line: int
  kind: str
  text: str


class Mistakes:
  """Collects mistakes, and raises them together."""

  def __init__(self) -> None:
    """Starts with none."""
    self._found: list[Mistake] = []

  def __len__(self) -> int:
    """Returns how many there are."""
    return len(self._found)

  def add(self, file: str, line: int, text: str, *, kind: str = "") -> None:
    """Adds one; without a kind it is always named."""
    self._found.append(
      Mistake(file=file, line=line, kind=kind or text, text=text)
    )

  def raise_any(self, what: str) -> None:
    """Raises all as one error, in the order of files and lines.

    Args:
      what: the flag and the file, as the user wrote them.

    Raises:
      ReportError: there is one.
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
