"""The family `mini_svamp`: one step, a distractor, several questions per body.

  Tom has 9 apples and 6 pens. He loses 4 apples.
  How many apples does Tom have now?      9 - 4
  How many more apples than pens does Tom have first?      9 - 6

The same body comes with several questions, so that always using all numbers, or
always the same ones, fails.
"""

from specialize_jax.mini import templates

FAMILY = "mini_svamp"

_Ask = templates.Ask
_Sum = templates.Sum
_Template = templates.Template

TEMPLATES = (
  _Template(
    "{N} has {a} {T} and {b} {U}. {He} {loses} {c} {T}.",
    (
      _Ask(("How many {T} does {N} have now?",), (_Sum("-", "a", "c"),)),
      _Ask(
        ("How many more {T} than {U} does {N} have first?",),
        (_Sum("-", "a", "b", "plain"),),
      ),
    ),
  ),
  _Template(
    "{N} has {a} {T}. {M} has {b} {T} and {c} {U}.",
    (
      _Ask(
        ("How many {T} do they have together?",),
        (_Sum("+", "a", "b", "together"),),
      ),
      _Ask(
        ("How many more {T} than {M} does {N} have?",),
        (_Sum("-", "a", "b", "plain"),),
      ),
    ),
  ),
  _Template(
    "{N} has {k} bags with {a} {T} each and {b} {U}.",
    (
      _Ask(("How many {T} does {N} have?",), (_Sum("*", "k", "a"),)),
      _Ask(
        ("How many more {U} than bags does {N} have?",),
        (_Sum("-", "b", "k", "plain", things="U"),),
      ),
    ),
  ),
  _Template(
    "{N} has {a} {T}. {He} gets {b} {T} and {c} {U}.",
    (
      _Ask(("How many {T} does {N} have now?",), (_Sum("+", "a", "b"),)),
      _Ask(
        ("How many more {T} than {U} does {he} get?",),
        (_Sum("-", "b", "c", "plain"),),
      ),
    ),
  ),
  _Template(
    "{N} {gains} {a} {T} on Monday and {b} {T} on Sunday. {M} {loses} {c} {T}.",
    (
      _Ask(("How many {T} does {N} have now?",), (_Sum("+", "a", "b"),)),
      _Ask(
        ("How many more {T} on Sunday than on Monday?",),
        (_Sum("-", "b", "a", "plain"),),
      ),
    ),
  ),
)
