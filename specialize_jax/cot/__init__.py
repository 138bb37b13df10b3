"""What a problem, a chain of thought and an answer are as text.

Plain Python on plain strings: the four data formats and how an answer is read
and graded. Assumes nothing; promises that the same text comes out wherever a
format is rendered, in training, in evaluation and in a teacher's prompt.
"""
