r"""Finds the model's own turn in generated text, and the answers marked in it.

A model that does not stop continues with another question, another speaker's
turn, or a chat template's tokens, none of which is part of its answer. Within
its turn an answer follows a marker: "the answer is", "####", "\boxed{}" or
"A:"; without a marker, the last line is the answer.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator

_MAX_MARKERS = 20  # counted from the last; more occur only in a loop
_MAX_SAID = 1000  # the length limit of a marked answer, in characters
# Of a longer text as much is read at either end: an answer is at one of them,
# and the patterns below take up to a microsecond a character.
_MAX_END = 50_000

_TOKEN = r"<\|[^\s<>|]{1,40}\|>|</?s>|<(?:bos|eos|pad|end_of_turn)>"
_LABEL = (
  r"(?:(?:next|new|another|second|follow-?up|bonus)[ ])?"
  r"(?:q|question|problem|exercise|task|human|user|system|instructions?"
  r"|input|prompt|query)"
)
# Every alternative of the patterns that search a whole text begins with a fixed
# character, so that they search a megabyte in milliseconds: a line begins with
# the "\n" before it, and `own_turn` adds one before the first line.
#
# A label must be at the beginning of a line, or of a sentence if the text has
# no lines (T5 generates no newlines).
_ASKS = re.compile(
  rf"{_TOKEN}|\[INST\]|<<SYS>>|<start_of_turn>"
  rf"|\n[ \t>#*_-]{{0,12}}+(?i:{_LABEL})"
  r"(?:[ \t]?\#?\d{1,4}[*_]{0,3}[:.)]|[*_]{0,3}:)"
  r"|\n[ \t>#*_-]{0,12}+Example[ \t]\#?\d{1,4}[*_]{0,3}:"
  # "### Question 2", but not "### Problem setup"
  rf"|\n[ \t]{{0,3}}+\#{{2,6}}+[ \t]{{0,3}}+(?i:{_LABEL})\b"
  r"(?=[ \t]*\#?\d{1,4}\b|[ \t*]*(?:[:.]|$))"
  r"|\n[ \t*]{0,5}(?:Question|Problem|Exercise)[ \t]\#?\d{1,4}[ \t*]{0,5}$",
  re.MULTILINE,
)
_ASKS_IN_LINE = re.compile(
  r"[.?!][ ](?:Q|Question|Problem|Human|User)(?:[ ]\d{1,4})?:"
)
# Speakers whose names also occur in problems ("Student: $4"): they end a turn
# only after an empty line or a marked answer.
_SPEAKER = (
  r"(?:student|teacher|tutor|instructor|professor|pupil|learner|child|kid"
  r"|parent|customer|client|agent|interviewer|interviewee|moderator|host|guest"
  r"|narrator|reader|speaker|person|participant|player|assistant|ai|bot"
  r"|chat ?bot|chat ?gpt|gpt|claude|gemini|llama|model|expert)"
)
# "Customer 1:" may also be a case of the solution.
_NUMBERED_SPEAKER = rf"{_SPEAKER}(?:[ ](?:[A-Z]|\d{{1,4}}))?"
_SPEAKS = re.compile(
  rf"\n\n[ \t>#*_-]{{0,12}}+(?i:{_SPEAKER})[*_]{{0,3}}:"
  rf"|\n\n[ \t>#*_-]{{0,12}}+(?i:{_NUMBERED_SPEAKER})[*_]{{0,3}}:"
  r"[^\n]{0,400}\?",
  re.MULTILINE,
)
_SPEAKS_ON = re.compile(
  rf"\n[ \t>#*_-]{{0,12}}+(?i:{_NUMBERED_SPEAKER})[*_]{{0,3}}:"
  rf"|[.?!][ ](?i:{_NUMBERED_SPEAKER}):"
)
# Any other name with a question, after the model has answered; before that the
# line is part of its reasoning, such as "Hypothesis: could it be 5?".
_ASKS_ON = re.compile(
  r"\n[ \t>*_-]{0,12}+[A-Z][\w.'-]{0,20}(?:[ ][A-Z][\w.'-]{0,20})?[*_]{0,3}:"
  r"[^\n]{1,400}\?[ \t*_\"]{0,5}(?:\n|\Z)"
)
# A text can repeat its prompt: the answer is then in the reply to it.
_BEGINS_WITH_PROMPT = re.compile(
  r"(?:<s>|<bos>|<\|begin_of_text\|>|\s){0,5}"
  r"(?:<\|im_start\|>\s{0,5}(?:system|user)"
  r"|<\|start_header_id\|>\s{0,5}(?:system|user)|<\|(?:system|user)\|>"
  r"|<start_of_turn>\s{0,5}user|\[INST\]|<<SYS>>"
  rf"|[ \t>#*_-]{{0,12}}(?i:{_LABEL})\b[*_]{{0,3}}[:\n])"
)
_REPLY_TOKENS = (
  r"<\|im_start\|>\s{0,5}assistant|<\|assistant\|>"
  r"|<start_of_turn>\s{0,5}model|\[/INST\]"
  r"|<\|start_header_id\|>\s{0,5}assistant\s{0,5}<\|end_header_id\|>"
)
_REPLY = re.compile(
  rf"{_REPLY_TOKENS}"
  r"|\n[ \t#*_]{0,12}(?i:assistant|response|bot|ai)[*_]{0,3}(?::[*_]{0,3}|$)",
  re.MULTILINE,
)
_REPLY_TOKEN = re.compile(_REPLY_TOKENS)
_END_TOKEN = re.compile(
  r"<\|[^\s<>|]{1,40}\|>|</s>|<(?:eos|end_of_turn|start_of_turn)>|\[INST\]"
)
_DIGIT = re.compile(r"\d")
_EMPTY_LINES = re.compile(r"\n(?:[ \t]*+\n){2,}+")
_OPENING_TOKENS = re.compile(rf"(?:{_TOKEN}|\s){{0,20}}")
# A reasoning model answers after its thinking block.
_THOUGHT = re.compile(
  r"</think(?:ing)?>|<\|channel\|>final<\|message\|>|<\|END_THINKING\|>"
)
# GLM's, around an answer, and Cohere's, before one.
_AROUND = re.compile(r"<\|(?:begin_of_box|end_of_box|START_RESPONSE)\|>")

_HEADING = r"step|part|case|solution|explanation|note|method|approach|example"
_ANSWER = r"(?i:nswer)\b(?:\s(?:to|for|of|in)\s[^.\n:=]{1,60}?)?[\s*_\"']{0,20}"
_IS = (
  r"(?:(?i:is|was|(?:w|sh)ould\ be|(?:will|must)\ be|equals"
  r"|(?:comes|came)\ (?:out\ )?to|turns\ out\ to\ be)\b)"
)
# The heading "#### Step 2" is not one.
_SIGNS = (
  re.compile(rf"\#\#\#\#(?!\#|\s{{0,5}}(?i:{_HEADING})\b)"),
  re.compile(r"\\(?:boxed|fbox|framebox)(?=\s{0,5}\{)"),
  re.compile(r"<answer>"),
)
# "A:" must be at the beginning of a line or sentence: "Plan A: $50" is not an
# answer.
_MARKERS = (
  re.compile(rf"[aA]{_ANSWER}(?:{_IS}|[:=])"),
  *_SIGNS,
  re.compile(r"A:(?:(?<=\nA:)|(?<=[.?!]\ A:)|(?<=\AA:))"),
)
# "A:" and "Answer:" at the beginning of a line open a reply, and the answer may
# be at its end; these markers conclude it.
_CONCLUDING = (
  re.compile(rf"[aA](?:{_ANSWER}{_IS}|(?<![\n*\#_][aA]){_ANSWER}[:=])"),
  *_SIGNS,
)
_OPTION_MARKERS = (
  re.compile(r"[cCrRbB](?i:orrect|ight|est)\s(?i:option|choice)\sis\b"),
  re.compile(r"\n\W{0,4}(?i:option|choice)[*_]{0,3}:"),
)
# Between a marker and the answer: spaces, and the beginning of a formula.
_OPENING = re.compile(r"(?:[\s:*_=]|\\\[|\\\(|\$\$)*")
# Of a list of one item, on the line after a marker: "Answer:\n- 72".
_BULLET = re.compile(
  r"(?:[-\u2013\u2022>#][ \t]+)+"
  r"|1[.)][ \t]+(?=\W{0,3}(?:\d|\([A-Za-z]\)"
  r"|(?i:yes|no|true|false|valid|invalid)\b))"
)
_ITEM = re.compile(r"\n[ \t]*(?:[-*\u2022>]|\(?\d{1,3}[.)])[ \t]")
_FENCE = re.compile(r"^[ \t]*`{3,}[\w+-]*[ \t]*(?:\n|\Z)", re.MULTILINE)
_BRACE = re.compile(r"\\[{}]|[{}]")
# The marker {"answer": and the value of that field.
_ENDS_FIELD = re.compile(r"[\"']\s?:\Z")
_FIELD_VALUE = re.compile(
  r"\s*(?:\"((?:[^\"\\]|\\.)*)\"|'([^'\n]*)'"
  r"|(\[[^\]]*\]|(?:[^,}\n]|,(?=\d{3}(?!\d)))*))",
  re.DOTALL,
)
# "Confidence: 95%" and "I am 95% sure" at the end, which are about the answer.
_CONFIDENCE = re.compile(
  r"(?:\n|[.!?,;)][ ]|[ ](?=[(\[]))[ \t>#*_\"'(\[-]{0,12}+"
  r"(?:(?:my|overall|final|answer|level[ ]of)[ ]){0,2}"
  r"(?:(?:confidence|certainty)\b(?![ ](?:interval|bound|limit))"
  r"[^\n:=]{0,40}?(?:[:=]|\b(?:is|of)\b)[^\n]{0,20}?"
  r"(?:\d|\b(?:very[ ])?(?:high|low|medium|moderate|certain|sure)\b)"
  r"|I(?:'m|[ ]am)[ ](?:about[ ])?\d[\d.]*[ ]?(?:%|percent)[ ]"
  r"(?:confident|sure|certain)\b)"
  r"[^\n]{0,60}[\s}\])`]*\Z",
  re.IGNORECASE,
)
_MAX_CONFIDENCE = 300
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~")


@dataclasses.dataclass(frozen=True)
class Said:
  """The text after a marker of an answer.

  Attributes:
    text: At most a thousand characters.
    is_boxed: Whether it is the content of a box.
    opens: Whether the marker may open a reply whose answer is at its end: there
      is no number before it.
  """

  text: str
  is_boxed: bool
  opens: bool = False


def own_turn(text: str, answered: Callable[[str], int | None]) -> str:
  r"""Returns the part of a text in which the model itself answers.

  What is in the middle of more than 100,000 characters, thoughts aside, is left
  out.

  Args:
    text: The model's whole text, in plain characters.
    answered: Returns the end of the first possible answer in a text, or None.
      Only a label or token after it ends the turn.

  Returns:
    The turn, beginning with a newline.

  Example:
    >>> at_once = lambda text: 1
    >>> own_turn("The answer is 72.\n\nHuman: And 5 + 6?", at_once)
    '\nThe answer is 72.\n'
    >>> own_turn("So it is 72.<|im_end|>\n<|im_start|>user", at_once)
    '\nSo it is 72.'
    >>> own_turn("The answer is 72.\nStudent: And 5 + 6?", at_once)
    '\nThe answer is 72.'
    >>> own_turn("Question: 3 + 4?\nAssistant: 7", at_once)
    '\n7'
  """
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  text = _FENCE.sub("", text) if "```" in text else text
  text = _STRUCK.sub("", text) if "~~" in text else text
  text = "\n" + _EMPTY_LINES.sub("\n\n", text.strip())
  text = _after_header(_ends(_after_thoughts(text)), _REPLY)
  text = "\n" + text[_OPENING_TOKENS.match(text).end() :]
  first = answered(text)
  return (
    text if first is None else _without_confidence(_until_asked(text, first))
  )


def readings(text: str) -> Iterator[str]:
  """Yields a text after its thoughts, up to a token that ends its turn; whole.

  The whole text is for an answer in which such a token is only quoted.

  Example:
    >>> one = readings('<think>B?</think>{"label": "A"}<|im_end|>{"label": 1}')
    >>> next(one)
    '{"label": "A"}'
  """
  text = _after_header(_after_thoughts(text), _REPLY_TOKEN)
  text = text[_OPENING_TOKENS.match(text).end() :]
  end = _END_TOKEN.search(text)
  if end:
    yield text[: end.start()]
  yield text


def _after_thoughts(text: str) -> str:
  """Returns a text after its thinking block, without tokens around answers."""
  thoughts = list(_THOUGHT.finditer(text))
  if thoughts and text[thoughts[-1].end() :].strip():
    text = text[thoughts[-1].end() :]
  return _AROUND.sub("", text)


def _after_header(text: str, header: re.Pattern[str]) -> str:
  """Returns the reply of a text that begins with its header or its prompt."""
  begins = _BEGINS_WITH_PROMPT.match(text)
  reply = header.search(text) if begins else header.match(text)
  # "AI" alone is an answer.
  return text[reply.end() :] if reply and text[reply.end() :].strip() else text


def _ends(text: str) -> str:
  """Returns a text without the middle of what is too long to be read."""
  if len(text) <= 2 * _MAX_END:
    return text
  return f"{text[:_MAX_END]}\n{text[-_MAX_END:]}"


def _until_asked(text: str, first: int) -> str:
  """Returns a text up to the next question or another speaker's turn.

  Args:
    text: The text.
    first: The end of the first possible answer.
  """
  # A question at the beginning is the one that is answered: "Q: 3 + 4? A: 7".
  first = max(first, 2)
  patterns = (_ASKS, _ASKS_IN_LINE, _SPEAKS)
  asks = [pattern.search(text, first) for pattern in patterns]
  for pattern, markers in ((_SPEAKS_ON, _MARKERS), (_ASKS_ON, _CONCLUDING)):
    if pattern.search(text, first):
      found = (marker.search(text) for marker in markers)
      marked = min((one.end() for one in found if one), default=len(text))
      asks.append(pattern.search(text, max(marked, first)))
  return text[: min((ask.start() for ask in asks if ask), default=len(text))]


def _without_confidence(text: str) -> str:
  """Removes a statement of confidence from the end of an answer."""
  start = max(0, len(text) - _MAX_CONFIDENCE)
  said = _CONFIDENCE.search(text, start)
  return text[: said.start()] if said and text[: said.start()].strip() else text


def has_marker(text: str) -> bool:
  """Returns whether a text has a marker of an answer, at either end."""
  text = _ends(text)
  return any(marker.search(text) for marker in _MARKERS)


def marked(
  text: str, *, options: bool = False, of_brackets: bool = False
) -> Iterator[Said]:
  r"""Yields the text after each marker of an answer, in reverse order.

  Args:
    text: A model's own turn.
    options: Whether phrases such as "the correct option is" are markers, too.
    of_brackets: Whether answers are brackets, in which case a box ends at the
      last brace of its line.

  Yields:
    At most a thousand characters after the marker and any spaces, colons or
    formula delimiters; for a box, its content.

  Example:
    >>> said = marked(r"The answer is: 5. So \boxed{\text{(B)}} is it.")
    >>> [one.text for one in said]
    ['\\text{(B)}', '5. So \\boxed{\\text{(B)}} is it.']
  """
  found = [
    marker
    for pattern in _MARKERS + (_OPTION_MARKERS if options else ())
    for marker in collections.deque(pattern.finditer(text), _MAX_MARKERS)
  ]
  found.sort(key=lambda marker: marker.end(), reverse=True)
  for marker in found[:_MAX_MARKERS]:
    said = text[marker.end() : marker.end() + _MAX_SAID]
    if marker[0].startswith("\\") and of_brackets:
      inside = said.partition("{")[2].partition("\n")[0]
      yield Said(inside.rpartition("}")[0] or inside, is_boxed=True)
    elif marker[0].startswith("\\"):
      yield Said(box_content(said), is_boxed=True)
    elif _ENDS_FIELD.search(marker[0]):
      value = _FIELD_VALUE.match(said)
      yield Said(value[value.lastindex].strip(), is_boxed=False)
    else:
      said = said.partition("</answer>")[0]
      opening = _OPENING.match(said).end()
      bullet = "\n" in said[:opening] and _BULLET.match(said, opening)
      if bullet and not _ITEM.search(said, bullet.end()):
        opening = bullet.end()
      yield Said(
        said[opening:],
        is_boxed=False,
        opens=not any(p.match(text, marker.start()) for p in _CONCLUDING)
        and _DIGIT.search(text, 0, marker.start()) is None,
      )


def box_content(text: str) -> str:
  r"""Returns the text between the first brace and its closing brace.

  Escaped braces are ignored. Without a closing brace, returns the rest of the
  line.

  Example:
    >>> box_content(r"{\\frac{3}{4}}$ of a cup")
    '\\\\frac{3}{4}'
  """
  begin = text.index("{") + 1
  depth = 1
  for brace in _BRACE.finditer(text, begin):
    if brace[0] in "{}":
      depth += 1 if brace[0] == "{" else -1
    if depth == 0:
      return text[begin : brace.start()].strip()
  return text[begin:].partition("\n")[0].strip()


def lines(text: str) -> Iterator[str]:
  """Yields a turn's lines that may be the answer: the last, then the first."""
  stripped = text.strip()
  last = stripped[-_MAX_SAID:].rpartition("\n")[2].strip()
  first = stripped[:_MAX_SAID].partition("\n")[0].strip()
  yield last
  if first != last:
    yield first
