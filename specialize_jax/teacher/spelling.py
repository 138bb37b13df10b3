r"""Makes a text and its tokens agree byte for byte, as a record requires.

Servers truncate a text at its stop sequence, strip it, and remove special
tokens, without changing the list of tokens. Since the tokens are what was
sampled, the text is replaced by the one that the remaining tokens spell.
"""

import dataclasses
from collections.abc import Callable, Sequence

from specialize_jax.align import special_tokens
from specialize_jax.files import writing
from specialize_jax.records import schema

_UNKNOWN = "\ufffd"  # a decoder's replacement for invalid bytes

Steps = tuple[schema.TeacherStep, ...]


class MisspeltError(ValueError):
  """The tokens do not spell the text."""


def fit(text: str, steps: Steps) -> tuple[str, Steps]:
  r"""Returns the text that the tokens spell, and those tokens.

  Keeps the tokens that begin within the text, and the white space before it. A
  last token that extends beyond the text by white space, as `".\n\n"` does if
  `"\n\n"` is a stop sequence, is kept whole. One that extends beyond it by
  other characters, as `" ###"` does if `"###"` is one, is removed if only white
  space of it is within the text. Tokens at the end that leave a character
  incomplete, for example at the maximum number of tokens, are removed.

  Args:
    text: The server's text.
    steps: Its tokens, in order.

  Raises:
    MisspeltError: the text is not in the tokens, or ends within a token that
      goes on with other characters.

  Example: for the text "72." and the tokens "\n", "72", ".\n\n" and "</s>",
  returns "\n72.\n\n" and the first three tokens.
  """
  spelt = b"".join([step.spelling for step in steps])
  if spelt == text.encode("utf-8", errors="surrogatepass"):
    return text, _without_silent_end(steps)
  if any(_is_unknown(step) for step in steps):
    steps = _with_inferred_bytes(text, steps)
    spelt = b"".join([step.spelling for step in steps])
  wanted = text.rstrip(_UNKNOWN).encode("utf-8", "surrogatepass")
  end = _end(spelt, wanted)
  if end is None and not all(step.spelling for step in steps):
    # vLLM spells all parts of a character "", even the last.
    steps = _with_inferred_bytes(text, steps, are_silent=True)
    spelt = b"".join([step.spelling for step in steps])
    end = _end(spelt, wanted)
  if end is None:
    raise MisspeltError(
      f"the tokens spell {writing.shown(spelt)}, and the text is"
      f" {writing.shown(text.encode('utf-8', 'surrogatepass'))}"
    )
  kept, position = [], 0
  for step in steps:
    if position >= end:
      break
    kept.append(step)
    position += len(step.spelling)
  if position > end and kept:
    spelling = kept[-1].spelling
    within = spelling[: len(spelling) - (position - end)]
    beyond = spelling[len(within) :].decode("utf-8", errors="ignore")
    if beyond.strip():
      if within.strip():
        raise MisspeltError(
          f"the text ends within the token {writing.shown(spelling)}, whose"
          " rest would be learned, too"
        )
      kept.pop()
  return _whole_characters(kept)


def without_special_tokens(text: str, steps: Steps) -> tuple[str, Steps]:
  r"""Removes the teacher's special tokens, and everything after its turn.

  Some servers include special tokens in the text, from which a student would
  learn their letters. Those at the beginning are removed, with the header of an
  assistant's turn; the text is truncated at the first that ends a turn.

  Args:
    text: The text that `steps` spell.
    steps: Its tokens, in order.

  Raises:
    MisspeltError: there is another special token, or one is part of tokens that
      also spell text.

  Example: the tokens "<s>", "72.", "<|im_end|>", "\n" and "I" become "72.".
  """
  if "<" not in text and "[" not in text:
    return text, steps
  opening = special_tokens.OPENING.match(text)
  start = opening.end() if opening else 0
  found = special_tokens.ANY.search(text, start)
  if not opening and not found:
    return text, steps
  if found and not special_tokens.END.match(text, found.start()):
    raise MisspeltError(f"the text holds the special token {found[0]!r}")
  end = found.start() if found else len(text)
  first = _token_at(text, start, steps)
  last = _token_at(text, end, steps)
  if first is None or last is None:
    raise MisspeltError(
      f"the text holds the special token {(found or opening)[0].strip()!r},"
      " spelt by tokens that spell text too"
    )
  kept = steps[first:last]
  spelt = b"".join([step.spelling for step in kept])
  return spelt.decode("utf-8", errors="surrogatepass"), kept


def _token_at(text: str, place: int, steps: Steps) -> int | None:
  """Returns the index of the token that begins at a position of a text.

  White space before the position may be part of that token; returns None if
  other characters are.
  """
  wanted = len(text[:place].encode("utf-8", "surrogatepass"))
  position = number = 0
  while number < len(steps) and position < wanted:
    following = position + len(steps[number].spelling)
    if following > wanted:
      before = steps[number].spelling[: wanted - position]
      return None if before.strip() else number
    position = following
    number += 1
  return number


def _without_silent_end(steps: Steps) -> Steps:
  """Removes tokens at the end that spell nothing."""
  last = len(steps)
  while last and not steps[last - 1].spelling:
    last -= 1
  return steps[:last]


def _end(spelt: bytes, text: bytes) -> int | None:
  """Returns the end of a text within the tokens' bytes; None if not found."""
  if spelt.startswith(text):
    return len(text)
  bare = text.lstrip()
  lead = len(spelt) - len(spelt.lstrip())
  return lead + len(bare) if spelt.startswith(bare, lead) else None


def _whole_characters(steps: list[schema.TeacherStep]) -> tuple[str, Steps]:
  while True:
    spelt = b"".join([step.spelling for step in steps])
    try:
      text = spelt.decode("utf-8", errors="surrogatepass")
      return text, _without_silent_end(tuple(steps))
    except UnicodeDecodeError as error:
      if error.end < len(spelt):
        raise MisspeltError(
          f"the tokens spell {writing.shown(spelt)}, which is not UTF-8"
        ) from error
      steps = steps[:-1]


def _is_unknown(step: schema.TeacherStep) -> bool:
  return step.token_bytes is None and _UNKNOWN in step.token


def _with_inferred_bytes(
  text: str, steps: Steps, *, are_silent: bool = False
) -> Steps:
  """Infers from the text the bytes of tokens that are parts of characters.

  A run of such tokens spells the part of the text between its neighbors,
  ignoring tokens that spell nothing. If it has more bytes than tokens, their
  division is unknown, and the first token receives the excess. The record keeps
  the server's string of the token, with U+FFFD, in addition to its bytes.

  Args:
    text: The server's text.
    steps: Its tokens.
    are_silent: Whether these parts are the tokens that spell nothing, rather
      than those with U+FFFD.
  """
  inferred: list[schema.TeacherStep] = []
  position = 0

  def is_unknown(step: schema.TeacherStep) -> bool:
    return not step.spelling if are_silent else _is_unknown(step)

  while len(inferred) < len(steps):
    first = len(inferred)
    if not is_unknown(steps[first]):
      token = steps[first].spelling.decode("utf-8", errors="replace")
      if not text.startswith(token, position):
        break  # beyond the text's end, or not the text's tokens
      inferred.append(steps[first])
      position += len(token)
      continue
    last = first
    while last < len(steps) and (
      is_unknown(steps[last]) or not steps[last].spelling
    ):
      last += 1
    start = position + (not are_silent)
    end = text.find(steps[last].token, start) if last < len(steps) else -1
    end = len(text) if end < 0 else end
    run = steps[first:last]
    if end > position or not are_silent:
      spelt = text[position:end].encode("utf-8", "surrogatepass")
      run = _spread(spelt, run, is_unknown)
    inferred += run
    position = end
  return (*inferred, *steps[len(inferred) :])


def _spread(
  spelt: bytes,
  steps: Sequence[schema.TeacherStep],
  is_unknown: Callable[[schema.TeacherStep], bool],
) -> list[schema.TeacherStep]:
  """Divides bytes among unknown tokens: one each, the excess to the first."""
  num_parts = sum(map(is_unknown, steps))
  if len(spelt) < num_parts:
    raise MisspeltError(
      f"{num_parts} tokens that are parts of characters stand where the text"
      f" has {writing.shown(spelt)}"
    )
  cut = len(spelt) - num_parts + 1
  parts = iter(
    [spelt[:cut], *[spelt[i : i + 1] for i in range(cut, len(spelt))]]
  )
  return [
    dataclasses.replace(step, token_bytes=next(parts))
    if is_unknown(step)
    else step
    for step in steps
  ]
