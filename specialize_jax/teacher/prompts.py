"""Templates of the teacher's prompts.

A template contains `{question}` exactly once. No other braces are interpreted,
so they need no escaping. For the chat endpoint the whole prompt is one user
message.
"""

import dataclasses
import hashlib

from etils import epath

from specialize_jax import errors
from specialize_jax.files import reading

PLACE = "{question}"

# The paper shows four solved problems, each step on its own line, and ends
# with "Let's think step by step" (FranxYao/FlanT5-CoT-Specialization:
# scripts/codex_decode_gsm8k.py). These four are the project's own, solved in
# two to five steps, one each of rates, fractions, percentages and money.
_FEW_SHOT = """\
Question: A baker fills 6 trays with 18 rolls each. She sells 5 bags of 12 \
rolls and gives the rest away in boxes of 8. How many boxes does she need?
Let's think step by step
There are 6 * 18 = 108 rolls in all.
She sells 5 * 12 = 60 rolls.
That leaves 108 - 60 = 48 rolls.
She needs 48 / 8 = 6 boxes.
The answer is 6

Question: Omar reads 1/3 of a book of 240 pages on Friday and half of what is \
left on Saturday. How many pages are left for Sunday?
Let's think step by step
On Friday Omar reads 240 / 3 = 80 pages.
Then 240 - 80 = 160 pages are left.
On Saturday he reads 160 / 2 = 80 pages.
For Sunday 160 - 80 = 80 pages are left.
The answer is 80

Question: A coat costs $75 and is sold at 20% off. Lena has saved $8 a week \
for 7 weeks. How many dollars does she still lack?
Let's think step by step
The discount is 75 * 20 / 100 = 15 dollars.
The coat costs 75 - 15 = 60 dollars now.
Lena has saved 8 * 7 = 56 dollars.
She lacks 60 - 56 = 4 dollars.
The answer is 4

Question: Two pumps fill a pool of 900 liters. One pumps 20 liters a minute \
and the other 10 liters a minute more. How many minutes do they take together?
Let's think step by step
The other pump pumps 20 + 10 = 30 liters a minute.
Together they pump 20 + 30 = 50 liters a minute.
They take 900 / 50 = 18 minutes.
The answer is 18

Question: {question}
Let's think step by step
"""

_ZERO_SHOT = """\
Question: {question}
Solve it step by step, one short step a line, as plain text without markup. \
End with a line "The answer is" and the number alone.
"""

PACKAGED = {
  "few_shot_chain_of_thought": _FEW_SHOT,
  "zero_shot_chain_of_thought": _ZERO_SHOT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A prompt template.

  Attributes:
    template: The text, which contains `PLACE` once.
  """

  template: str

  def render(self, question: str) -> str:
    """Returns the prompt of a question."""
    before, _, after = self.template.partition(PLACE)
    return f"{before}{question}{after}"

  @property
  def fingerprint(self) -> str:
    """Twelve hexadecimal digits of the template's SHA-256."""
    return hashlib.sha256(self.template.encode()).hexdigest()[:12]


def load(name_or_path: str) -> Prompt:
  """Loads a packaged template by name, or a file.

  Raises:
    UserError: there is neither, or it does not contain `PLACE` exactly once.
  """
  if name_or_path in PACKAGED:
    return Prompt(template=PACKAGED[name_or_path])
  path = epath.Path(name_or_path)
  if not path.is_file():
    raise errors.UserError(
      f"--prompt={name_or_path} is neither a file nor one of"
      f" {', '.join(PACKAGED)}"
    )
  template = reading.read_text(path)
  places = template.count(PLACE)
  if places != 1:
    raise errors.UserError(
      f"--prompt={path} has {places} places for the question; write {PLACE}"
      " exactly once"
    )
  return Prompt(template=template)
