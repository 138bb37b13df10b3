"""The family `mini_asdiv`: mostly one step, many wordings and units.

A rope is 14 metres long. Mia cuts off 6 metres. How long is the rope now?
"""

from specialize_jax.mini import templates

FAMILY = "mini_asdiv"

_Ask = templates.Ask
_Sum = templates.Sum
_Template = templates.Template

_ONE_STEP = (
  (
    "A rope is {a} metres long. {N} cuts off {b} metres.",
    ("How long is the rope now?", "How many metres of rope are left?"),
    _Sum("-", "a", "b", "plain", things="metres"),
  ),
  (
    "{N} runs {a} metres on Monday and {b} metres on Sunday.",
    ("How many metres does {he} run in all?", "How far does {N} run?"),
    _Sum("+", "a", "b", "plain", things="metres"),
  ),
  (
    "{N} works {a} hours every day.",
    ("How many hours does {he} work in {k} days?",),
    _Sum("*", "k", "a", "plain", things="hours"),
  ),
  (
    "{N} works {a} hours. {M} works {b} hours more than {N}.",
    ("How many hours does {M} work?",),
    _Sum("+", "a", "b", "plain", "M", things="hours"),
  ),
  (
    "{N} has {a} dollars. {He} spends {b} dollars at the shop.",
    ("How much money does {N} have left?", "How many dollars are left?"),
    _Sum("-", "a", "b", "own", things="dollars"),
  ),
  (
    "{k} {T} cost {a} dollars each at the shop.",
    ("How much do the {T} cost?", "How many dollars does {N} need?"),
    _Sum("*", "k", "a", "plain", things="dollars"),
  ),
  (
    "There are {a} {T} on the table and {b} {T} in the box.",
    ("What is the total number of {T}?", "How many {T} are there?"),
    _Sum("+", "a", "b", "plain"),
  ),
  (
    "There are {a} {T} in the box. {N} takes {b} of the {T}.",
    ("How many {T} are still in the box?", "How many {T} are left?"),
    _Sum("-", "a", "b", "plain"),
  ),
  (
    "{N} and {M} share {a} {T}.",
    ("How many {T} does each get?", "How many {T} does {N} get?"),
    _Sum("/", "a", "2", "own"),
  ),
  (
    "{N} needs {a} {T}. {He} has only {b} {T}.",
    ("How many more {T} does {N} need?",),
    _Sum("-", "a", "b", "plain"),
  ),
)

_TWO_STEPS = (
  (
    "{N} has {a} dollars. {He} buys {k} {T} for {b} dollars each.",
    ("How much money does {N} have left?", "How many dollars are left?"),
    (
      _Sum("*", "k", "b", "part", things="dollars"),
      _Sum("-", "a", "#0", "own", things="dollars"),
    ),
  ),
  (
    "{N} runs {a} metres every day for {k} days, and {b} metres on Sunday.",
    ("How many metres does {he} run in all?", "How far does {N} run?"),
    (
      _Sum("*", "k", "a", "plain", things="metres"),
      _Sum("+", "#0", "b", "plain", things="metres"),
    ),
  ),
)

ONE_STEP_TEMPLATES = tuple(
  _Template(body, (_Ask(wordings, (one,)),))
  for body, wordings, one in _ONE_STEP
)

TEMPLATES = ONE_STEP_TEMPLATES + tuple(
  _Template(body, (_Ask(wordings, sums),))
  for body, wordings, sums in _TWO_STEPS
)
