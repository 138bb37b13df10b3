"""The family `mini_multiarith`: always two steps, told in few words.

Anna has 8 pens, buys 5 and loses 3. How many pens are left?
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
    "{N} has {a} {T}, {gains} {b} and {loses} {c}.",
    (_Ask(_LEFT + _NOW, (_Sum("+", "a", "b"), _Sum("-", "#0", "c"))),),
  ),
  _Template(
    "{N} has {a} {T}, {loses} {b} and {gains} {c}.",
    (_Ask(_NOW, (_Sum("-", "a", "b"), _Sum("+", "#0", "c"))),),
  ),
  _Template(
    "{N} has {a} {T} and {loses} {b}, then {he} gives {c} to {M}.",
    (_Ask(_LEFT, (_Sum("-", "a", "b"), _Sum("-", "#0", "c"))),),
  ),
  _Template(
    "{N} {gains} {a} {T}, then {b} more and then {c} more.",
    (_Ask(_ALL + _NOW, (_Sum("+", "a", "b"), _Sum("+", "#0", "c"))),),
  ),
  _Template(
    "{N} has {k} boxes of {a} {T} and {loses} {b}.",
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
    "{N} has {a} {T} and {gains} {b}.",
    (_Ask(_NOW + _ALL, (_Sum("+", "a", "b"),)),),
  ),
  _Template(
    "{N} has {a} {T} and {loses} {b}.",
    (_Ask(_LEFT + _NOW, (_Sum("-", "a", "b"),)),),
  ),
  _Template(
    "{N} has {a} {T}, then {he} gives {b} to {M}.",
    (_Ask(_LEFT, (_Sum("-", "a", "b"),)),),
  ),
  _Template(
    "{N} {gains} {a} {T}, then {b} more.",
    (_Ask(_ALL + _NOW, (_Sum("+", "a", "b"),)),),
  ),
  _Template(
    "{N} {gains} {k} boxes of {a} {T}.",
    (_Ask(_ALL + _NOW, (_Sum("*", "k", "a"),)),),
  ),
)
