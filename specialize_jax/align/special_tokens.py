r"""The special tokens of teachers, where they stand in a text as letters.

Servers that do not skip special tokens write them into the text. There they
are no part of what the teacher said, and a student would learn their letters.
"""

import re

_BAR = r"[|\uff5c]"  # U+FF5C is DeepSeek's
_BEGIN = (
  rf"<s>|<bos>|\[BOS\]|<{_BAR}(?:begin_of_text|begin\u2581of\u2581sentence"
  rf"|startoftext|start_of_text|im_start|start|START_RESPONSE){_BAR}>"
)
_HEADER = (
  rf"<{_BAR}im_start{_BAR}>assistant|<{_BAR}start_header_id{_BAR}>assistant"
  rf"<{_BAR}end_header_id{_BAR}>|<start_of_turn>model"
  rf"|<{_BAR}(?i:assistant|im_assistant){_BAR}>|\[/INST\]"
  rf"|<{_BAR}channel{_BAR}>final<{_BAR}message{_BAR}>"
)
# The names between bars that end a turn, or begin another. Others are within
# one, such as GLM's <|begin_of_box|> around an answer.
_END_NAMES = (
  r"im_start|im_end|im_user|im_system|im_assistant|end_?of_?text|eot|eot_id"
  r"|eom_id|eod|eod_id|eos|eos_token|pad|end|return|call|stop|user|system"
  r"|assistant|prompter|human|observation|tool|start_header_id|start_of_role"
  r"|end_?of_?turn|end_of_turn_token|end_response|end_of_response|endofprompt"
  r"|end\u2581of\u2581sentence"
)
_END = (
  rf"</s>|<eos>|<pad>|\[EOS\]|<end_of_turn>|<start_of_turn>|\[/?INST\]|<<SYS>>"
  rf"|<{_BAR}(?i:{_END_NAMES}){_BAR}>"
)
_BARRED = rf"<{_BAR}[^<>\s]{{1,40}}{_BAR}>"
_OTHER = rf"{_BARRED}|<unk>|<s>|<bos>|\[BOS\]"

END = re.compile(rf"{_END}|(?:\s*(?:{_END}|{_BARRED}))+\s*\Z")
"""A token after which a text or a turn is over, as any is that ends a text."""

ANY = re.compile(f"{_END}|{_OTHER}")
"""Any special token."""

OPENING = re.compile(
  rf"(?:\s{{0,5}}(?:{_HEADER}|{_BEGIN}|{_END})\n{{0,2}}){{1,8}}"
)
"""Special tokens, and an assistant's header, that a text opens with."""


def is_special(token: str) -> bool:
  """Returns whether a token is a special one, and stands for no text.

  Example:
    >>> is_special("</s>"), is_special(" <"), is_special("<<48")
    (True, False, False)
  """
  bare = token.strip()
  return bare[:1] in ("<", "[") and ANY.fullmatch(bare) is not None


def why_not_text(text: str) -> str | None:
  """Returns why a text cannot be taught; None where it has no special token.

  Example:
    >>> why_not_text("72<|im_end|>")
    "its text holds the special token '<|im_end|>'"
    >>> why_not_text("48/2 = <<48/2=24>>24 < 72")
  """
  found = ANY.search(text) if "<" in text or "[" in text else None
  return found and f"its text holds the special token {found[0]!r}"
