"""The mini world: small word problems, their exact teacher, its tokenizer.

The embedded default of the whole project. Everything here is a pure function
of a seed: the problems of each family, the two tokenizers trained on their
text, and the teacher's records. Nothing is downloaded and no network is
trained; a world is built in seconds on a laptop.
"""
