"""Figures name things in any script, and say so in the files they become."""

import warnings

import pytest

from specialize_jax.reports import drawing


def drawn(label):
  with drawing.figure(2.0, "A figure.") as (figure, svg):
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1])
    axes.set_title(label)
  return svg()


@pytest.mark.parametrize("label", ["정답 나", "答案", "まとめ", "อ่าน"])
def test_what_our_font_lacks_is_text_that_a_browser_writes(label):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    figure = drawn(label)
    assert label in figure
    assert figure.png()


def test_what_our_font_has_is_drawn_and_looks_alike_everywhere():
  assert "<text" not in drawn("Queue, größer als Ω: ▁x")
