"""Answers are read as people write them, or as the paper's code reads them."""

import doctest
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specialize_jax import errors
from specialize_jax.cot import (
  answers,
  calculator,
  formulas,
  spelling,
  turns,
  written_numbers,
)


@pytest.mark.parametrize(
  "module", [answers, formulas, spelling, turns, written_numbers]
)
def test_the_docstrings_numbers_are_true(module):
  outcome = doctest.testmod(module)
  assert outcome.attempted > 0
  assert outcome.failed == 0


@pytest.mark.parametrize(
  ("text", "number"),
  [
    ("The answer is 72", "72"),
    ("The answer is 72.", "72"),
    ("The answer is: 72 clips.", "72"),
    ("The answer is $1,000", "1000"),
    ("The answer is -$5.25.", "-5.25"),
    ("The answer is $-5", "-5"),
    ("The answer is \u22125 degrees", "-5"),
    ("The answer is .5", "0.5"),
    ("The answer is 50%.", "50"),
    ("The answer is 3/4 of a cup", "3/4"),
    ("The answer is 109,200,000", "109200000"),
    ("the answer is 5. So the answer is 6.", "6"),
    ("The answer is 6. There are 3 left.", "6"),
    ("The answer is 6\n\nQ: What is 7?", "6"),
    ("48/2 = 24\n#### 24", "24"),
    ("Q: 3 + 4?\nA: 7", "7"),
    ("He has 3 and gets 4, so 7", "7"),
    ("She has 7. The answer is unknown.", "7"),
    ("The answer is 48+24=72", "72"),
    ("The answer is 1 234,50 \u20ac.", "1234.50"),
    ("The answer is 12 345.6 kg", "12345.6"),
    ("The answer is 12 345 678", "12345678"),
    ("The answer is Rs.18", "18"),
    ("It cost Rs.18.50", "18.50"),
    ("The answer is ~~17~~ 18", "18"),
    (r"It is \framebox{18}", "18"),
    ("The answer is neither 63 nor 65 but 64.", "64"),
    ("The answer is not 5, it is 7.", "7"),
    ("The answer is 50% of 10, which is 5.", "5"),
    ("The answer is 20% of 50, or 10.", "10"),
    ("The answer is half of 10, or 5.", "5"),
    ("The answer is twice 6, that is, 12.", "12"),
    ("The answer is 18 = 50% of 36.", "18"),
    ("The answer is 50% or more.", "50"),
    ("The answer is none.", "0"),
    ("The answer is no apples left.", "0"),
    ("The answer is 8*8, or 64.", "64"),
    ("The answer is 8 x 8, giving 64.", "64"),
    ("The answer is 40 + 24 \u2192 $64", "64"),
    ("The answer is 40 + 24 gives 64", "64"),
    ("The answer is 5 or 7", None),
    ("The answer is 1,064 dollars and 5 cents.", "1064.05"),
    ("She pays 64 dollars and 50 cents", "64.50"),
    ("The answer is 50 cents.", "50"),
    ("Day 3: 64", "64"),
    ("Answer 2: 64", "64"),
    ("It is 5:30", None),
    ("The ratio is 3 : 4", None),
    ("Thus, Kylar pays **$64** for the 16 glasses.", "64"),
    ("He pays **\\$1,064.50** for 16 glasses.", "1064.50"),
    ("**3.** 5 + 6 = 11", "11"),
    ("**3** apples and 5 pears make 8", "8"),
    ("So **3** boxes of **5** make 15", "15"),
    ("**Step 3:** 5 + 6 = 11", "11"),
    ("**64**", "64"),
    ("{'reasoning': '8*8', 'answer': 64, 'confidence': 0.9}", "64"),
    ('{"answer": "$1,064.50", "confidence": 0.9}', "1064.50"),
    ('{"answer": 1,064, "confidence": 0.9}', "1064"),
    ('{"answer": [1, 2], "confidence": 0.9}', None),
    ("5-3", "3"),
    ("5 - 3", "3"),
    ("(5)-3", "3"),
    ("= -3", "-3"),
    ("", None),
    ("The answer is yes.", None),
    ("The answer is 1 3/4 cups", "7/4"),
    ("The answer is - 5", "-5"),
    ("so 5 - 10 = - 5", "-5"),
    ("10 - 5", "5"),
    ("The answer is **18**.", "18"),
    (r"The answer is $\boxed{1{,}234}$.", "1234"),
    (r"The answer is \$18.", "18"),
    (r"The answer is \frac{3}{4}", "3/4"),
    ("The answer is 1.5e3", "1.5e3"),
    ("Final answer: 18", "18"),
    ("The correct answer is 18, not 81.", "18"),
    ("The answer is:\n18", "18"),
    ("The answer is \u20ac20", "20"),
    ("The answer is 5:30", None),
    ("The answer is 5:00 PM.", "5"),
    ("The answer isn't 5, it must be 6", "6"),
    ("The answer is 6.\n\nQ: Why?\nA: Well. The answer is 7.", "6"),
    ("The answer is 6.\nQuestion: 1+1?\nAnswer: 2", "6"),
    ("The answer is 3/4/5", None),
    ("Plan A: $50 a month. Plan B: $60. He saves $10.", "10"),
    ("So she has 26. A: 26", "26"),
    ("Tickets: 4\nA: 26 dollars in 2 weeks", "26"),
    ("\\boxed{18} dollars in 2 weeks", "18"),
    ("The answer is 18 eggs (16 - 3 = 13 are left).", "18"),
    ("The answer is 18, because 9 * 2 = 18 and 3 + 4 = 7", "18"),
    ("The answer is 2 * (3 + 4) = 14", "14"),
    ("The answer is (18)", "18"),
    ("The answer would be 18 in 2 weeks", "18"),
    ("**Answer**: 18 in 2 weeks", "18"),
    ("The answer is 2\u00bd cups", "5/2"),
    ("The answer is \u20135 degrees", "-5"),
    ("It takes 3\u20135 days", "5"),
    ("So she makes 18 dollars.\nConfidence: 95%", "18"),
    ("She makes 18.\n\n**Confidence:** 0.95", "18"),
    ('{\n "result": 18,\n "confidence": 0.95\n}', "18"),
    ("So 18 apples. I'm 95% sure.", "18"),
    ("18 (confidence: 95%)", "18"),
    ("18\nOverall confidence level (0-100): 85/100", "18"),
    ("Confidence: 95%", "95"),
    ("The 95% confidence interval: 3 to 5", "5"),
    ("20 - 8 is twelve.", "12"),
    ("8 and 4 make twelve", "12"),
    ("He had 20 and gave away 8. Twelve remain.", "12"),
    ("After giving away 8 of 20, Tom has twelve apples left.", "12"),
    ("So Ann has 18, which is two more than Tom.", "18"),
    ("She has 18 eggs for two cakes in total.", "18"),
    ("She has 18 eggs. She gave them to her two friends.", "18"),
    ("No one knows.", None),
  ],
)
def test_a_number_is_read_as_people_write_it(text, number):
  assert answers.extract_number(text) == number


# What a person would mark as right: spellings of numbers, and where an answer
# stands and ends.
@pytest.mark.parametrize(
  ("prediction", "target"),
  [
    ("The answer is $1\\,200$ meters.", "1200"),
    ("The answer is 1\xa0200 meters.", "1200"),
    ("The answer is 1\u202f200", "1200"),
    ("1\u2009200", "1200"),
    ("The answer is 1 200 meters.", "1200"),
    ("1 200", "1200"),
    ("The answer is $10,\\!000$", "10000"),
    ("The answer is $\\frac{-3}{4}$.", "-0.75"),
    ("$-\\dfrac{3}{4}$", "-3/4"),
    ("\\boxed{\\frac34}", "0.75"),
    ("\\boxed{2\\frac{1}{2}}", "2.5"),
    ("\\boxed{\\$18}", "18"),
    ("\\boxed{18\\%}", "18"),
    ("\\boxed{\\text{18 dollars}}", "18"),
    ("The answer is \\$1{,}200.", "1200"),
    ("The answer is \u0661\u0662\u0660\u0660.", "1200"),
    ("The answer is \uff11\uff0c\uff12\uff10\uff10\uff0e\uff15", "1200.5"),
    ("\u7b54\u3048\u306f\uff11\uff18\u3067\u3059\u3002", "18"),
    ("The answer is \u0967\u096e", "18"),
    ("The answer is \u0661\u066c\u0662\u0660\u0660\u066b\u0665", "1200.5"),
    ("The answer is \U0001d7cf\U0001d7d6", "18"),
    ("The answer is eighteen.", "18"),
    ("The answer is twenty apples", "20"),
    ("The answer is twelve (12)", "12"),
    ("So she has eighteen.", "18"),
    ("The answer is twenty-five", "25"),
    ("Eighteen", "18"),
    ("The answer is minus 5.", "-5"),
    ("The answer is negative five.", "-5"),
    ("The answer is negative 5", "-5"),
    ("The answer is \u22125", "-5"),
    ("The temperature is minus 5 degrees.", "-5"),
    ("The answer is 10 minus 5, which is 5", "5"),
    ("The answer is 18 = 9 * 2.", "18"),
    ("18 = 9 * 2", "18"),
    ("So she makes 18 = 9 x 2", "18"),
    ("$18 = 9 \\times 2$", "18"),
    ("The answer is 18 = 20 - 2", "18"),
    ("The answer is 18 dollars = 9 dollars * 2", "18"),
    (
      "The answer is 72.\n\nHuman: 5 + 6?\nAssistant: The answer is 11.",
      "72",
    ),
    ("The answer is 72.\n\nProblem: Tom has 3", "72"),
    ("The answer is 72.\n\nTask: Tom has 3. The answer is 3", "72"),
    ("The answer is 72.\n\nExample 2: The answer is 9", "72"),
    ("Let us try.\nExample 2: The answer is 9", "9"),
    ("So 72.\n\nUser: 5?", "72"),
    ("72<|im_end|>\n<|im_start|>user\n5", "72"),
    ("72<|eot_id|><|start_header_id|>user<|end_header_id|>\n5", "72"),
    ("72<|endoftext|>5 6", "72"),
    ("72</s>5", "72"),
    ("72</s><s>[INST] 5 [/INST] 6", "72"),
    ("72\n\n### Instruction:\n5", "72"),
    ("72\n### Instruction\n5", "72"),
    ("72\n\n**Question:** 5", "72"),
    ("72\n\nQuestion 2: 5", "72"),
    ("72\n\nProblem 2\n5 pens", "72"),
    ("The answer is 72. Q: Tom has 5 pens. A: The answer is 5.", "72"),
    ("72<\uff5cend\u2581of\u2581sentence\uff5c>5", "72"),
    ("72 <end_of_turn>\n<start_of_turn>user\n5", "72"),
    ("<|im_start|>assistant\nThe answer is 72<|im_end|>", "72"),
    (
      "<|im_start|>user\nHas 5<|im_end|>\n<|im_start|>assistant\n72<|im_end|>",
      "72",
    ),
    ("<s>[INST] Tom has 5 [/INST] 72 </s>", "72"),
    ("Human: Tom has 5?\n\nAssistant: 72\n\nHuman: 5?", "72"),
    ("Q: 3 + 4?\nA: 7", "7"),
    ("<think>maybe 5</think>\n72", "72"),
    ("The answer is 1.5e3", "1500"),
    ("The answer is 1.5 \xd7 10^3", "1500"),
    ("$1.5 \\times 10^{3}$", "1500"),
    ("The answer is 1.5\xd710\xb3", "1500"),
    ("$1,200.00", "1200"),
    ("1.200,50", "1200.5"),
    ("3/4", "0.75"),
    ("1 1/2", "1.5"),
    ("50%", "50"),
    ("50%", "0.5"),
    ("half a dozen", "6"),
    ("two dozen", "24"),
    ("Three dozens of eggs", "36"),
    ("**18**", "18"),
    ("#### 18", "18"),
    ("18.", "18"),
    ("#### $1,200", "1200"),
    ("The answer is 3 / 4.", "0.75"),
    ("The answer is $4 million.", "4"),
    ("The answer is $4 million.", "4000000"),
    ("The answer is 2 dozen", "24"),
    ("The answer is 2 and a half hours", "2.5"),
    ("The answer is one half.", "0.5"),
    ("The answer is two-thirds", "2/3"),
    ("The answer is: \n\n$$18$$", "18"),
    ("**Final Answer:** \\(\\boxed{18}\\)", "18"),
    ("The final answer to the question is 18.", "18"),
    ("Answer: 18 (not 81)", "18"),
    ("The answer is not 5 but 6", "6"),
    ("The answer is approximately 18", "18"),
    ("10/3 \u2248 3.33", "3.33"),
    ("The answer is \u20b91,20,000", "120000"),
    ("The answer is 1'200", "1200"),
    ("So 18 (9 * 2)", "18"),
    ("He has 3 and gets 4, so seven", "7"),
    ("#### Step 2\nso 18", "18"),
    ("The answer is -\xbd", "-0.5"),
    ("It is 2\xbd", "2.5"),
    ("The answer is 18. The answer is correct.", "18"),
    ("The answer is 5 + 13 = 18", "18"),
    ("x = 18", "18"),
    ("The answer is $-\\$5$", "-5"),
    ("The answer is (-5)", "-5"),
    ("= \\boxed{-5}", "-5"),
    ("\\boxed{x = 18}", "18"),
    ("The answer is 12,5 kg", "12.5"),
    ("The answer is 18 \u20ac", "18"),
    ("\u20ac18", "18"),
    ("The answer is US$18", "18"),
    ("The answer is 0.5", "1/2"),
    ("The answer was 18", "18"),
    ("The answer is one of them: 18", "18"),
    ("I think seventeen plus one is 18", "18"),
    ("The answer is 3 hours and 30 minutes", "3"),
    ("There is no one. 18", "18"),
    ("A: eighteen", "18"),
    ("The answer is 48 \xf7 2 = 24", "24"),
    ("18\n\nLet me know if you have questions! Question: none", "18"),
    ("The answer is 18 .", "18"),
    ("The answer is 1,200,", "1200"),
    ("The answer is 5\xd710\u2076", "5000000"),
    ("The answer is 9 times 2, which is 18.", "18"),
    ("The answer is \\textbf{18}", "18"),
    ("The answer is \\underline{18}", "18"),
    ("The answer is \u200b18", "18"),
    ("\ufeffThe answer is 18", "18"),
    ("Answer:18", "18"),
    ("answer=18", "18"),
    ("ANSWER: 18", "18"),
    ("The answer is $ 18", "18"),
    ("The answer is 18$", "18"),
    ("Therefore 18 apples = 9 + 9", "18"),
    ("The answer is 100 - 82 = 18 = 9 * 2", "18"),
    ("The answer is \\frac{1}{2}", "0.5"),
    ("\\sqrt{4} ... the answer is 2", "2"),
    ("The answer is \\( \\frac{-3}{4} \\)", "-0.75"),
    ("\\boxed{10^{3}}", "1000"),
    ("\\boxed{10^3}", "1000"),
    ("The answer is 10\u00b3.", "1000"),
    ("The answer is 2**10", "1024"),
    ("\\boxed{-2^{2}}", "-4"),
    ("The answer is 10^{-3}", "0.001"),
    ("\\boxed{{-3 \\over 4}}", "-0.75"),
    ("\\boxed{2{3 \\over 4}}", "2.75"),
    ("\\boxed{\\nicefrac{3}{4}}", "0.75"),
    ("\\boxed{0.\\overline{3}}", "1/3"),
    ("\\boxed{1.1\\bar{6}}", "7/6"),
    ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{90^{\\circ}\\text{C}}", "90"),
    ("\\boxed{24\\text{ cm}^2}", "24"),
    ("The area is 24 cm^2", "24"),
    ("The answer is 24 m\u00b2", "24"),
    ("\\boxed{3^{\\text{rd}}}", "3"),
    ("\\boxed{\\num{1200}}", "1200"),
    ("\\boxed{\\displaystyle 18}", "18"),
    ("\\begin{aligned} x &= 18 \\end{aligned}", "18"),
    ("\\boxed{\\textdollar 18}", "18"),
    ("\\boxed{{-}5}", "-5"),
    ("The answer is -(18)", "-18"),
    ("The answer is -(3/4).", "-0.75"),
    ("The answer is 20 -(2) = 18", "18"),
    ("The answer is $18k a year", "18000"),
    ("The answer is $18k a year", "18"),
    ("\\boxed{5m}", "5"),
    ("The answer is 5!", "5"),
    ("The answer is _18_.", "18"),
    ("The answer is 12x", "12"),
    ("<answer>72</answer> of 80", "72"),
    ("The answer is 72.\n\nStudent: And 5 + 6?\nTeacher: 11", "72"),
    ("It is 72.\n\nTutor: Now 5 + 6?", "72"),
    ("The answer is 72. Student: The answer is 11.", "72"),
    ("The answer is 72.\n**Customer:** and 5?", "72"),
    ("The answer is 72.\nSpeaker 2: The answer is 11", "72"),
    ("The answer is 72.\nTom Jones: What is 5 + 6?\nAnna: 11", "72"),
    ("The answer is 72.\n\nNext question: 5 + 6?", "72"),
    ("Student: $4\nTeacher: $5\nThe answer is 9", "9"),
    ("The answer is 71?\nCheck: it is not.\nThe answer is 72.", "72"),
    ("A: Let's see.\nHypothesis: could it be 5?\nNo. The answer is 72.", "72"),
    ("**Answer:** Let's see.\nLemma: is 5 odd?\nYes. The answer is 72.", "72"),
    ("Answer: 72\nStudent: And 5 + 6?\nTutor: The answer is 11.", "72"),
    ("Final answer: 72\nJoan: And 5 + 6?\nThe answer is 11.", "72"),
    ("9 * 8 = 72, not 80.", "72"),
    ("That is 72 apples (and not 80).", "72"),
  ],
)
def test_a_right_number_counts_however_it_is_spelt(prediction, target):
  verdict = answers.grade(prediction, target)
  assert verdict.correct, verdict


@pytest.mark.parametrize(
  ("prediction", "target"),
  [
    ("The answer is 5 = 5", "6"),
    ("100 - 5", "95"),
    ("The answer is 1,000", "2,000"),
    ("The answer is 12,5", "12"),
    ("The answer is seventeen", "7"),
    ("The answer is minus 5", "5"),
    ("The answer is twenty-five", "20"),
    ("The answer is twenty-five", "5"),
    ("The answer is $1\\,200$", "200"),
    ("The answer is 72.\nHuman: 11", "11"),
  ],
)
def test_a_part_of_a_number_is_not_the_number(prediction, target):
  verdict = answers.grade(prediction, target)
  assert not verdict.correct, verdict


# Formulas, and several numbers: whatever is read of them is a wrong number.
@pytest.mark.parametrize(
  "answer",
  [
    *("2\\sqrt{3}", "3\\pi", "\\frac{\\pi}{4}", "\\frac{2\\sqrt{3}}{3}"),
    *("5!", "x^2 + 3", "3x", "2x + 3", "(2, 3)", "2, 3", "2:3", "5 \\pm 2"),
    *("101_2", "\\sqrt{16}", "\\log_2 8", "[1,3]", "x \\in (2, 5)", "\\infty"),
    *("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\frac{3}{4}x", "3+4i", "x<5"),
    *("12 \\text{ and } 15", "3\\times 5", "x = 5, y = 3", "10^{5000}", "2^x"),
    *("\\left(\\frac{3}{4}\\right)^2", "|-5|", "\\{1, 2\\}", "\\binom{5}{2}"),
    *("\\frac{1}{\\sqrt{2}}", "\\frac{3+4}{2}", "e^{2}", "2e", "\\pi", "x"),
    *("48 + 24", "10-12", "3/4/5", "5:30", "\\sin 30^\\circ", "2(3+4)"),
  ],
)
def test_a_box_that_holds_no_plain_number_is_no_answer(answer):
  said = f"As 3 + 4 = 7, the answer is $\\boxed{{{answer}}}$."
  assert answers.extract_number(said) is None


@pytest.mark.parametrize(
  "text",
  [
    *("The answer is 2\u03c0.", "The answer is 3\u221a2", "The answer is 3 pi"),
    *("The answer is 5 or 7.", "The answer is 48 + 24.", "It is $2\\sqrt{3}$."),
    *("The answer is 2 sqrt(3)", "The answer is 2x + 3.", "so 3\\pi"),
    *("The answer is 3 to 5 days.", "The answer is 2, 3, and 5.", "$x^{3y}$"),
    *("The answer is 1, 2, 3.", "The answer is none of these.", "nothing"),
    *("The answer is the square root of 2", "The answer is 5 squared."),
    *(
      "The answer is 2024-05-01.",
      "The answer is 1.2.3",
      "The answer is 5'10\"",
    ),
  ],
)
def test_a_sentence_that_says_no_plain_number_is_no_answer(text):
  assert answers.extract_number(text) is None


def test_a_gold_answer_that_is_a_formula_is_met_by_no_part_of_it():
  assert not answers.grade("The answer is 2", "2\\sqrt{3}").correct
  assert answers.grade("The answer is 1000", "10^{3}").correct


@pytest.mark.parametrize(
  ("kind", "prediction", "target"),
  [
    ("option", "(B)", "(B)"),
    ("option", "B)", "(B)"),
    ("option", "option B", "(B)"),
    ("option", "Option B is correct", "(B)"),
    ("option", "the answer is: (B).", "(B)"),
    ("option", "\\boxed{\\text{(B)}}", "(B)"),
    ("option", "$\\boxed{\\textbf{(B)}}$", "(B)"),
    ("option", "\\boxed{B}", "(B)"),
    ("option", "\\boxed{\\text{B}}", "(B)"),
    ("option", "\\boxed{\\mathrm{(B)}\\ 12/25}", "(B)"),
    ("option", "(A) is wrong.\n(C) is wrong.\nB", "(B)"),
    ("option", "First (A).\n\nSo it must be (B).", "(B)"),
    ("option", "The correct option is (B).", "(B)"),
    ("option", "The correct choice is B", "(B)"),
    ("option", "**Answer: B**", "(B)"),
    ("option", "**(B)**", "(B)"),
    ("option", "#### B", "(B)"),
    ("option", "The answer is (B) because (A) is early.", "(B)"),
    ("option", "The answer is (B). (A) is too early.", "(B)"),
    ("option", "The answer is \\boxed{B}. I considered (A).", "(B)"),
    ("option", "\uff08\uff22\uff09", "(B)"),
    ("option", "The answer is [B]", "(B)"),
    ("option", "Answer: (B)\n\nHuman: next (A)", "(B)"),
    ("option", "(B)<|im_end|>\n(A)", "(B)"),
    ("option", "B\n\nExplanation: (A) is wrong", "(B)"),
    ("option", "The answer is (B)</s>", "(B)"),
    ("option", "The answer is Option (B): lion", "(B)"),
    ("option", "Let's see.\n\n\\boxed{(B)}\n\nI hope this helps!", "(B)"),
    ("option", "So the answer is\n(B)", "(B)"),
    ("option", "Therefore, the answer is (B) 12/25/1937.", "(B)"),
    ("option", "The best answer is B.", "(B)"),
    (
      "option",
      "Final Answer: The final answer is $\\boxed{B}$. I hope it is correct.",
      "(B)",
    ),
    ("option", "The answer is B, because A is wrong", "(B)"),
    ("option", "The answer is (B) rather than (C).", "(B)"),
    ("option", "The answer is not (A) but (B).", "(B)"),
    ("option", "So the answer is ( B ).", "(B)"),
    ("option", '{"answer": "B", "confidence": "A lot"}', "(B)"),
    ("choice", "The statement is **False**.", "False"),
    ("choice", "The argument is deductively valid.", "valid"),
    ("choice", "So the argument is not valid.", "invalid"),
    ("choice", "So the argument is not invalid.", "valid"),
    ("choice", "The answer is not false.", "true"),
    ("choice", '{"answer": "Yes"}', "yes"),
    ("choice", "\\boxed{\\text{Yes}}", "yes"),
    ("choice", "Thinking.\nNo", "no"),
    ("choice", "Yes, it is. No doubt.", "yes"),
    ("choice", "Yes, because no one lies.", "yes"),
    ("choice", "The answer is **False**.", "False"),
    ("choice", "not True = False", "False"),
    ("choice", "The argument: the answer is not valid", "invalid"),
    ("choice", "The answer is deductively valid.", "valid"),
    ("choice", "\\boxed{True}", "True"),
    ("choice", "the answer is: No.", "no"),
    ("choice", "Yes.\nQ: more\nA: No", "yes"),
    ("choice", "It is 3.\nSo the answer is \\boxed{yes}", "yes"),
    ("choice", "no\n\nExplanation: they turned", "no"),
    (
      "words",
      "The answer is: \\boxed{\\text{apple, cat, dog}}",
      "apple cat dog",
    ),
    ("words", "1. apple\n2. cat\n3. dog", "apple cat dog"),
    ("words", "AI", "ai"),
    ("words", "The sorted list:\n- apple\n- cat\n- dog", "apple cat dog"),
    ("words", "Sorted:\napple cat dog", "apple cat dog"),
    ("words", "['apple', 'cat', 'dog']", "apple cat dog"),
    ("words", "apple -> cat -> dog", "apple cat dog"),
    ("words", "The answer is:\n1. apple\n2. cat\n3. dog", "apple cat dog"),
    ("words", "**apple cat dog**", "apple cat dog"),
    ("words", "apple | cat | dog", "apple cat dog"),
    ("brackets", "\\boxed{] ) >}", "] ) >"),
    ("brackets", "\\boxed{\\} ] )}", "} ] )"),
    ("brackets", "Stack.\n] ) >", "] ) >"),
    ("brackets", "The answer is `] ) >`.", "] ) >"),
    ("brackets", "The answer is } ] )", "} ] )"),
    ("brackets", "$] ) >$", "] ) >"),
    ("brackets", "] ) ></s>", "] ) >"),
    ("brackets", "] ) >\n\nInput: ( (", "] ) >"),
    ("numeral", "\\boxed{-5}", "-5"),
    ("exact", "\\boxed{\\text{No}}", "no"),
    ("exact", "Thinking\nno", "no"),
    ("exact", "No\nConfidence: 90%", "no"),
    ("option", "(B)\nConfidence: high", "(B)"),
    ("words", "apple certainty dog", "apple certainty dog"),
    ("exact", "The answer is \u201cno\u201d.", "no"),
    ("option", "Therefore, option (D) is correct.", "(D)"),
    ("option", "So (D) is the correct answer, and (A) is not.", "(D)"),
    ("option", "Hence D is the answer.", "(D)"),
    ("option", "D is the correct answer.", "(D)"),
    ("option", "The answer: option D is the best choice.", "(D)"),
    ("option", "(A) is wrong. (B) is wrong. So it is (C).", "(C)"),
    ("option", "I select C", "(C)"),
    ("option", "Select C", "(C)"),
    ("option", "The answer is C, not D.", "(C)"),
    ("option", "The correct answer is therefore (C).", "(C)"),
    ("option", "The answer is C - 12/25", "(C)"),
    ("option", "The answer is C, 12/25", "(C)"),
    ("choice", "(No)", "No"),
    ("choice", "The answer is definitely yes.", "yes"),
    ("choice", "The answer is a resounding yes.", "yes"),
    ("words", "The sorted list is: apple, cat", "apple cat"),
    ("words", "The words in order are apple, cat, and dog.", "apple cat dog"),
    ("words", "Sorted: apple cat", "apple cat"),
    ("words", "Here is the list:\napple\ncat", "apple cat"),
    ("words", "The answer is:\napple,\ncat", "apple cat"),
    ("words", "So the answer is apple/cat", "apple cat"),
    ("words", "list order words", "list order words"),
    ("brackets", "The complete sequence: ] ) >", "] ) >"),
    ("brackets", "We need to append ] )", "] )"),
  ],
)
def test_words_are_found_where_numbers_are(kind, prediction, target):
  verdict = answers.grade(prediction, target, kind=kind)
  assert verdict.correct, verdict


@pytest.mark.parametrize(
  ("kind", "prediction", "target"),
  [
    ("option", "(A) or (B)", "(B)"),
    ("option", "not (B)", "(B)"),
    ("option", "So it must not be (B).", "(B)"),
    ("option", "The answer is (A)\nHuman: (B)", "(B)"),
    ("choice", "Yes. The answer is no", "yes"),
    ("choice", "The answer is not yes", "yes"),
    ("choice", "It is not said that the argument is valid.", "valid"),
    ("choice", "Whether True or False, the statement is true.", "True"),
    ("option", "The answer is B, C", "(B)"),
    ("option", "The answer is B - C", "(B)"),
    ("option", "(B) is incorrect", "(B)"),
    ("option", "(B) is not the correct answer", "(B)"),
    ("option", "(A) is correct at first, and (B) is correct later", "(B)"),
    ("option", "It is not (A). It is not (B).", "(B)"),
    ("brackets", "12: ) ; stack: [ (", "[ ("),
    ("words", "apple\ncat", "cat"),
    ("option", "The answer is (A), (B)", "(A)"),
    ("option", "\\boxed{A}. The answer (B) is wrong", "(B)"),
  ],
)
def test_words_that_only_occur_are_no_answer(kind, prediction, target):
  verdict = answers.grade(prediction, target, kind=kind)
  assert not verdict.correct, verdict


def test_a_loop_is_no_answer_unless_one_was_given_before():
  loop = "So Rosa has 14 + 6 = 20 Tom" + " has 20 Tom" * 12
  assert not answers.grade(loop, "20").correct
  assert not answers.grade("So 7 + 7 = 14. " + "14 " * 30, "14").correct
  assert answers.grade("The answer is 20. " * 12, "20").correct
  assert answers.grade("It is 3 + 4 = 7 and 7 + 7 = 14, so 14", "14").correct
  assert answers.grade("There are 1000000000000", "1000000000000").correct


@settings(deadline=None)
@given(
  st.integers(-(10**9), 10**9),
  st.sampled_from(["{}", "${}", "{} apples", "{}.", "{}%", "{}, or so"]),
)
def test_any_whole_number_survives_commas_and_units(value, unit):
  text = f"First 3 + 4 = 7. The answer is {unit.format(f'{value:,}')}"
  assert answers.numbers_equal(answers.extract_number(text), str(value))
  assert answers.grade(text, str(value)).correct
  assert not answers.grade(text, str(value + 1)).correct


# How models say that they are done, around the answer.
_SAID = ("{}", "{}.", "So the answer is {}.", "The answer is: {}", "A: {}")
_SAID += ("First (C) and 3 and yes.\nSo the answer is {}.", "Answer: **{}**")
_GOES_ON = ("", "\n\nQ: And then?\nA: So the answer is 99.", "\nQuestion: 7?")
_BY_KIND = {
  "numeral": st.integers(-9999, 9999).map(str),
  "option": st.sampled_from("ABCDEFG").map("({})".format),
  "choice": st.sampled_from(["Yes", "No", "True", "valid", "invalid"]),
  "words": st.lists(
    st.text("abcdefghij", min_size=2, max_size=6), min_size=1, max_size=9
  ).map(" ".join),
  "brackets": st.lists(st.sampled_from("()[]{}<>"), min_size=1).map(" ".join),
}


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(sorted(_BY_KIND)))
def test_an_answer_counts_however_it_is_said_and_no_other_does(data, kind):
  target, other = (data.draw(_BY_KIND[kind]) for _ in range(2))
  said, goes_on = (data.draw(st.sampled_from(x)) for x in (_SAID, _GOES_ON))
  verdict = answers.grade(said.format(target) + goes_on, target, kind=kind)
  assert verdict.correct, verdict
  verdict = answers.grade(said.format(other) + goes_on, target, kind=kind)
  assert verdict.correct is (other == target), verdict


@settings(deadline=None)
@given(
  st.fractions(0, 1000, max_denominator=99),
  st.sampled_from(["The answer is {}", "#### {}", "x + y = {}", "${}"]),
)
def test_a_fraction_equals_its_decimals(value, said):
  written = f"{value.numerator}/{value.denominator}"
  decimals = f"{float(value):.9f}"
  assert answers.grade(said.format(written), decimals).correct
  assert answers.grade(said.format(decimals), written).correct
  assert not answers.grade(said.format(written), str(value + 1)).correct


@pytest.mark.parametrize(
  ("left", "right", "equal"),
  [
    ("72", "72.00", True),
    ("1/3", "0.3333333", True),
    ("0.33", "1/3", False),
    ("1000", "2000", False),
    ("5", "-5", False),
    ("1/0", "1/0", False),
    ("x", "x", False),
    ("0", "-0", True),
    ("0.0166667", "1/60", True),
    ("0.0000002", "0.0000009", False),
    ("6.6e-34", "1.6e-19", False),
    ("6.6e-34", "6.60e-34", True),
    ("0", "0.0000001", False),
  ],
)
def test_numbers_are_compared_by_value(left, right, equal):
  assert answers.numbers_equal(left, right) is equal


def test_a_gold_answer_is_read_before_its_unit():
  assert answers.grade("The answer is 9", "9 (bags of 2)").correct
  assert not answers.grade("The answer is 2", "9 (bags of 2)").correct
  assert answers.grade("The answer is 72", "48 + 24 = 72\n#### 72").correct
  assert answers.grade("The answer is 1,234", "1 234").correct
  assert not answers.grade("The answer is 1", "1 234").correct


@pytest.mark.parametrize(
  ("prediction", "target"),
  [("1,000", "2,000"), ("-5", "5"), ("The answer is 7", "7.0")],
)
def test_the_papers_number_rule_is_kept_with_its_faults(prediction, target):
  assert answers.grade(prediction, target, grader="paper_code").correct
  differs = prediction != "The answer is 7"
  assert answers.grade(prediction, target).correct is not differs


def test_the_papers_number_rule_takes_the_last_match():
  verdict = answers.grade(
    "The answer is 72. She had 3.", "72", grader="paper_code"
  )
  assert verdict == answers.Verdict(extracted="3", correct=False)
  assert answers.grade("none", "5", grader="paper_code").extracted is None
  assert not answers.grade("5", "none", grader="paper_code").correct


@pytest.mark.parametrize(
  ("prediction", "target", "correct"),
  [
    ("So the answer is (B).", "(B)", True),
    ("So the answer is (A) or (B).", "(B)", False),
    ("the answer is invalid.", "valid", False),
    ("The answer is TRUE", "True", True),
    ("(B)", "(B)", True),
    ("The answer is 'apple cat'.", "apple cat", True),
    ("The answer is apple\u00a0 cat\n\nQ: next", "apple cat", True),
    ("the answer is No. So the answer is Yes.", "Yes", True),
    ("the answer is ] ) ].", "] ) ]", True),
    ("The answer is", "", False),
  ],
)
def test_words_are_compared_exactly(prediction, target, correct):
  verdict = answers.grade(prediction, target, kind="exact")
  assert verdict.correct is correct


@pytest.mark.parametrize(
  ("kind", "prediction", "target", "correct"),
  [
    ("option", "So the answer is (B).", "(B)", True),
    ("option", "B", "(B)", True),
    ("option", "A: (B)", "(B)", True),
    ("option", "The answer is b.", "B", True),
    ("option", "So the answer is option (B)", "(B)", True),
    ("option", "So the answer is (B) 12/25/1937.", "(B)", True),
    ("option", "The answer is B: the lion.", "(B)", True),
    ("option", "B) the lion", "(B)", True),
    ("option", "The answer is B. the lion, not (A)", "(B)", False),
    ("option", "The answer is $\\boxed{\\text{(B)}}$.", "(B)", True),
    ("option", "The correct answer should be (B).", "(B)", True),
    ("option", "So the answer is (A) or (B).", "(B)", False),
    ("option", "So the answer is (A) and (B).", "(A)", False),
    ("option", "So the answer is not (B).", "(B)", False),
    ("option", "So the answer is (None of the above).", "(B)", False),
    ("option", "(A) or (B). So the answer is (B).\n\nQ: (C)", "(B)", True),
    ("option", "The answer is Monsters, Inc.", "Monsters, Inc", True),
    ("choice", "So the answer is Yes.", "yes", True),
    ("choice", "No, since Elias plays hockey.", "no", True),
    ("choice", "So the answer is not valid.", "valid", False),
    ("choice", "So the answer is invalid.", "valid", False),
    ("choice", "True and False = False", "True", False),
    ("choice", "yes or no", "yes", False),
    ("choice", "Nothing", "no", False),
    ("choice", "", "no", False),
    ("words", "the answer is apple, cat, and dog.", "apple cat dog", True),
    ("words", '["apple", "cat", "dog"]', "apple cat dog", True),
    ("words", "apple; cat; dog", "apple cat dog", True),
    ("words", "apple dog cat", "apple cat dog", False),
    ("words", "apple cat", "apple cat dog", False),
    ("words", "catdog", "cat dog", False),
    ("brackets", "So the answer is ] ) >.", "] ) >", True),
    ("brackets", "])>", "] ) >", True),
    ("brackets", "] ) > ]", "] ) >", False),
    ("brackets", "the answer is ) and >", ") >", False),
    ("numeral", "So the answer is 8.", "8", True),
    ("numeral", "So the answer is 18.", "8", False),
  ],
)
def test_an_answer_is_read_by_its_kind(kind, prediction, target, correct):
  verdict = answers.grade(prediction, target, kind=kind)
  assert verdict.correct is correct


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(get_args(answers.Kind)))
def test_grading_never_fails_and_a_text_is_its_own_answer(text, kind):
  for grader in get_args(answers.Grader):
    verdict = answers.grade(text, text, kind=kind, grader=grader)
    if grader == "fixed" and verdict.extracted and kind != "number":
      again = answers.grade(verdict.extracted, text, kind=kind)
      assert again.extracted is not None


_ENDLESS = (
  *("1", "1,", "(", "a b ", "answer is ", "1/", "-", "\n", "1e99 ", "1 ", " "),
  *("$", ",1", "111,1", "(a", "\\boxed{", "\\frac12", "\u00bd", "\nQ: ", "Q:"),
  *(
    "one ",
    "minus ",
    "#### 18\n",
    '."',
    "<|a|>",
    "yes. ",
    "(B) ",
    "1 = ",
    "* 2",
  ),
  *("2^", "\\sqrt{", "1, 2 and ", "\nTom: a?", "\n\nStudent", "x = 1, ", "_1"),
  *("A: ", "answer", "{", "[", "<", "\u0663", "- a\n", "not a but ", "1x10^"),
  *("a\n", "sorted ", "append ", "so a is ", "therefore ", "half of ", "no a "),
)


def _seconds(text, target, kind):
  start = time.process_time()
  for grader in get_args(answers.Grader):
    assert not answers.grade(text, target, kind=kind, grader=grader).correct
  return time.process_time() - start


@pytest.mark.parametrize("repeated", _ENDLESS)
def test_endless_outputs_are_wrong_at_once(repeated):
  text = (repeated * 30_000)[:30_000] + " 1/3"
  for kind in ("number", "option", "words", "brackets"):
    assert _seconds(text, "7", kind) < 0.5
    assert _seconds("7 oranges", text, kind) < 0.5


@pytest.mark.parametrize(
  ("output", "is_read"),
  [
    ("The answer is 72. {long}", True),
    ("{long} The answer is 72.", True),
    ("<think>{long} or 5 {long}</think>The answer is 72. {long}", True),
    ("The answer is 72.\n\nQuestion: 1 + 1? {long} The answer is 2.", True),
    ("{long} The answer is 72. {long}", False),
  ],
)
def test_a_long_turn_is_read_at_both_ends(output, is_read):
  long = "and so on " * 20_000
  assert answers.grade(output.format(long=long), "72").correct == is_read


@pytest.mark.slow
@pytest.mark.parametrize("repeated", _ENDLESS)
@pytest.mark.parametrize("kind", get_args(answers.Kind))
def test_a_megabyte_is_graded_in_a_second(repeated, kind):
  text = (repeated * 10**6)[: 10**6] + " 1/3"
  for said in (text, f"The answer is 8 {text}", f"{text}\nThe answer is 8"):
    assert _seconds(said, "7", kind) < 1.0
  assert _seconds("oranges", text, kind) < 1.0


@pytest.mark.parametrize("repeated", _ENDLESS)
def test_a_megabyte_is_computed_in_a_second(repeated):
  text = (repeated * 10**6)[: 10**6]
  start = time.process_time()
  calculator.result_of(f"{text} 48 / 2 =")
  calculator.result_of(f"{text}=")
  assert calculator.evaluate(text) is None
  assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
  ("prediction", "chain_of_thought", "correct"),
  [
    ("(A) or (B)", None, True),
    ("(A) or (B)", False, True),
    ("(A) or (B)", True, False),
    ("(B) fits. So the answer is (A).", False, True),
    ("(B) fits. So the answer is (A).", True, False),
  ],
)
def test_the_papers_word_rule_depends_on_the_prompt(
  prediction, chain_of_thought, correct
):
  verdict = answers.grade(
    prediction,
    "(B)",
    kind="option",
    grader="paper_code",
    chain_of_thought=chain_of_thought,
  )
  assert verdict.correct is correct


def test_the_paper_searches_the_numbers_of_big_bench_hard_as_words():
  kinds = {"number": False, "numeral": True}
  for kind, correct in kinds.items():
    verdict = answers.grade(
      "the answer is 18", "8", kind=kind, grader="paper_code"
    )
    assert verdict.correct is correct


@pytest.mark.parametrize(
  ("prediction", "target", "correct"),
  [
    ("So the answer is (A) or (B).", "(B)", True),
    ("the answer is invalid.", "valid", True),
    ("(B) fits. So the answer is (A).", "(B)", False),
    ("the answer is (A). Or the answer is (B).", "(B)", False),
    ("invalid", "valid", True),
    ("the answer is true", "True", False),
  ],
)
def test_the_papers_word_rule_is_kept_with_its_faults(
  prediction, target, correct
):
  verdict = answers.grade(prediction, target, kind="exact", grader="paper_code")
  assert verdict.correct is correct


def test_an_unknown_grader_or_kind_is_named():
  with pytest.raises(errors.UserError, match="fixed or paper_code"):
    answers.grade("1", "1", grader="strict")
  with pytest.raises(errors.UserError, match="number or numeral or ex"):
    answers.grade("1", "1", kind="colour")


@pytest.mark.parametrize(
  ("text", "value"),
  [
    # A list of one item after the marker is the answer, not its sign.
    ("**Answer:**\n- 72 clips", "72"),
    ("Answer:\n1. 72 clips", "72"),
    ("Answer: - 5", "-5"),
    # "A:" opens a solution whose answer is at its end.
    ("A: She sold 48 / 2 = 24 in May. She sold 48 + 24 = 72 in all.", "72"),
    ("Answer:\n1. She sold 48.\n2. Then 24.\n3. Total: 48 + 24 = 72.", "72"),
    ("A: 5 + 3 = 8 apples. Then 8 - 2 = 6.", "6"),
    ("A: 72. Because 48 + 24 = 72, and 48 is twice 24.", "72"),
    ("A: 48/2 = <<48/2=24>>24 in May.\n48+24 = <<48+24=72>>72 in all.", "72"),
    ("Answer: The total number sold in the 2 months is 72.", "72"),
    # But after a solution it concludes, and what follows is a remark.
    ("48 + 24 = 72\n\nAnswer: She sold 72.\n\nLet me solve the other 2!", "72"),
    ("So 48+24 = 72.\nAnswer: She sold 72. That is 24 more than before.", "72"),
    ("Answer: She sold 72 in all. She sold 48 in April and 24 in May.", "72"),
    ("Answer: The total cost is $72. Each of the 3 shirts costs $24.", "72"),
    ("Answer: 48 + 24 = 72.\nVerification: 72 - 24 = 48", "72"),
    ("Answer: x = 72.\nCheck: 2x + 3 = 147", "72"),
    ("Answer: She sold 72. [1]", "72"),
    ("The answer is that she has 72, of which 48 are old and 24 are new", "72"),
    ("The answer is that he paid $72 and the tip was 5", "72"),
    ("The answer is that she sold 48 and 24, for a total of 72 clips.", "72"),
    ("The answer is the number 72, where the first one is 3.", "72"),
    ("The last three numbers are 150 200 250", "250"),
    ("The sum of 100 200 300", "300"),
    ("The answer is the sum of 48 and 24, which is 72.", "72"),
    ("The answer is 72. This answer is correct because 48 + 24.", "72"),
    ("The answer is 5. Wait, the answer is 5 or 7.", None),
    ("The answer is not 72.", None),
    ("The answer is not 5 but 7.", "7"),
    ("The answer is 0.5 or 1/2.", "0.5"),
    ("The answer is 3/4 or 75%.", "0.75"),
    # Groups and decimals.
    ("The answer is 0,125.", "0.125"),
    ("She earns 10 000 dollars.", "10000"),
    ("There are 1 234 567 people.", "1234567"),
    ("Das macht 12 500,50 Euro", "12500.50"),
    ("In 2020 500 people came", "500"),
    ("The area is 48 m2.", "48"),
    (r"\boxed{\SI{72}{\meter}}", "72"),
    # Headings and cases of the solution itself.
    ("Over 2 months.\n\n### Problem setup\n48 + 24\n\n**Answer: 72**", "72"),
    ("There are 2.\n\nCustomer 1: 48.\n\nCustomer 2: 24.\n\nSo 72.", "72"),
    ("It is 72.\n\n### Question 2\nAnd 5 + 3?\nIt is 8.", "72"),
    ("The answer is 72.\n\nStudent 2: And 5 + 3? It is 8.", "72"),
    ("So it is 72.\n\nPlayer A: And 5 + 3? It is 8.", "72"),
    ("It is 72.\n\n### Problem 2 (Apples)\nAnd 5 + 3?\nIt is 8.", "72"),
    # What is around a text.
    ("48 + 24 = 72\n" + 40 * "-", "72"),
    ("The answer is\n```\n72\n```", "72"),
    ("So 72.\r\n\r\nStudent: and 5?", "72"),
    ("Then 2 less: the answer is <|begin_of_box|>72<|end_of_box|>.", "72"),
    ("<|START_THINKING|>5<|END_THINKING|><|START_RESPONSE|>So 72.", "72"),
  ],
)
def test_numbers_are_read_as_models_write_them(text, value):
  verdict = answers.grade(text, value or "72")
  assert verdict.correct is (value is not None), verdict


@pytest.mark.parametrize(
  ("kind", "text", "target"),
  [
    ("option", "Answer:\n1. (B)", "(B)"),
    ("option", "So the answer is B (Eve).", "(B)"),
    ("option", "The answer is (B) Eve, not (A) Bob.", "(B)"),
    ("choice", "Answer:\n- Yes", "yes"),
    ("choice", "Conclusion: Invalid", "invalid"),
    ("choice", "We are not at the start. No.", "no"),
    ("brackets", "Answer:\n```text\n] )\n```", "] )"),
    ("brackets", "Answer:\n- ] )", "] )"),
    ("exact", "Answer:\n- late parcel", "late parcel"),
    ("exact", "The answer is cafe\u0301.", "caf\u00e9"),
    ("words", "(1) apple (2) cat", "apple cat"),
    ("words", "Answer:\n- apple\n- cat", "apple cat"),
    ("words", "apple\r\nbanana\r\ncherry", "apple banana cherry"),
  ],
)
def test_words_are_read_as_models_write_them(kind, text, target):
  assert answers.grade(text, target, kind=kind).correct


@pytest.mark.parametrize("target", ["5-7", "2 or 3", "-2, 5", "1,2,3", "2x+3"])
def test_a_gold_answer_of_several_numbers_is_none(target):
  for number in ("2", "-2", "5", "1"):
    assert not answers.grade(f"The answer is {number}.", target).correct


@pytest.mark.parametrize(
  ("kind", "text", "target"),
  [
    ("option", "A (incorrect), B (correct)", "(A)"),
    ("option", "A (wrong) B (right)", "(A)"),
    ("option", "The answer is A (or B).", "(A)"),
    ("option", "The answer is A (not sure, maybe B).", "(A)"),
    ("choice", "The argument is not: valid", "valid"),
    ("choice", "Premise 1: true", "true"),
  ],
)
def test_what_is_denied_or_said_of_a_part_is_no_answer(kind, text, target):
  assert not answers.grade(text, target, kind=kind).correct
