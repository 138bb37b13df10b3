"""The family `mini_multiarith`: always two steps, in concise wordings.

Anna has 8 pens. She buys 5 pens and loses 3 pens. How many pens are left?
"""

from specialize_jax.mini import templates

FAMILY = "mini_multiarith"

_Ask = templates.Ask
_Sum = templates.Sum
_Template = templates.Template

_LEFT = ("How many {T} are left?", "How many {T} does {he} have left?")
_NOW = ("How many {T} does {he} have?", "How many {T} does {N} have now?")
_ALL = ("How many {T} are there in all?", "What is the total of {T}?")

TEMPLATES = (
  _Template(
    "{N} has {a} {T}. {He} {gains} {b} {T} and {loses} {c} {T}.",
    (_Ask(_LEFT + _NOW, (_Sum("+", "a", "b"), _Sum("-", "#0", "c"))),),
  ),
  _Template(
    "{N} has {a} {T}. {He} {loses} {b} {T} and {gains} {c} {T}.",
    (_Ask(_NOW, (_Sum("-", "a", "b"), _Sum("+", "#0", "c"))),),
  ),
  _Template(
    "{N} has {a} {T}. {He} {loses} {b} {T}, and gives {c} {T} to {M}.",
    (_Ask(_LEFT, (_Sum("-", "a", "b"), _Sum("-", "#0", "c"))),),
  ),
  _Template(
    "{N} {gains} {a} {T}, then {b} {T} and then {c} {T}.",
    (_Ask(_ALL + _NOW, (_Sum("+", "a", "b"), _Sum("+", "#0", "c"))),),
  ),
  _Template(
    "{N} has {k} boxes of {a} {T} and {loses} {b} {T}.",
    (_Ask(_LEFT, (_Sum("*", "k", "a"), _Sum("-", "#0", "b"))),),
  ),
  _Template(
    "{N} {gains} {k} boxes of {a} {T} and {b} more {T}.",
    (_Ask(_ALL + _NOW, (_Sum("*", "k", "a"), _Sum("+", "#0", "b"))),),
  ),
  _Template(
    "{N} has {a} {T}. {M} has {b} more {T} than {N}.",
    (
      _Ask(
        ("How many {T} do they have in all?",),
        (
          _Sum("+", "a", "b", "other", "M"),
          _Sum("+", "a", "#0", "together"),
        ),
      ),
    ),
  ),
)

ONE_STEP_TEMPLATES = (
  _Template(
    "{N} has {a} {T} and {gains} {b} {T}.",
    (_Ask(_NOW + _ALL, (_Sum("+", "a", "b"),)),),
  ),
  _Template(
    "{N} has {a} {T} and {loses} {b} {T}.",
    (_Ask(_LEFT + _NOW, (_Sum("-", "a", "b"),)),),
  ),
  _Template(
    "{N} has {a} {T}, and gives {b} {T} to {M}.",
    (_Ask(_LEFT, (_Sum("-", "a", "b"),)),),
  ),
  _Template(
    "{N} {gains} {a} {T}, then {b} {T}.",
    (_Ask(_ALL + _NOW, (_Sum("+", "a", "b"),)),),
  ),
  _Template(
    "{N} {gains} {k} boxes of {a} {T}.",
    (_Ask(_ALL + _NOW, (_Sum("*", "k", "a"),)),),
  ),
)
