"""The mini world: small word problems, an exact teacher, and two tokenizers.

The built-in data of the demo. Everything is a pure function of a seed: the
problems of each family, the tokenizers trained on their text, and the teacher's
records. It is built in seconds on a laptop, without downloads and without
training a teacher network.

Example:
  >>> import random
  >>> from specialize_jax.mini import grammar, stories
  >>> problem = stories.draw(random.Random(0), (1.0,))  # one step
  >>> grammar.likeliest_solution(problem).endswith(f"is {problem.answer}.")
  True
"""
