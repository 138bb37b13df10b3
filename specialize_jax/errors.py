"""The one exception that means: the person at the keyboard can mend this."""


class UserError(ValueError):
  """An error in what the user gave: a flag, a gin binding, a file, a name.

  The message is one sentence that names the argument as the user wrote it,
  what was got, what was expected and the way out. `specialize` prints it
  alone, without a traceback, and exits with status 2; every other exception
  is a defect or a failing machine, keeps its traceback, and exits with 1.
  """
