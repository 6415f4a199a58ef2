"""Each metric against evaluation code of others where it is installed, and against values from its definition.

`anls`, `torchmetrics` and `lmms-eval` (`pip install --no-deps lmms-eval==0.7.3`; single files of it are loaded, because
the package itself needs a hundred others) are wanted; what is not there skips.
"""

import importlib.util
import random
from pathlib import Path

import pytest

from megatron_focus.evaluation.metrics.anls import anls, edit_distance
from megatron_focus.evaluation.metrics.exact_match import exact_match, normalised
from megatron_focus.evaluation.metrics.multiple_choice import choice_accuracy, chosen_letter
from megatron_focus.evaluation.metrics.relaxed_accuracy import relaxed_accuracy
from megatron_focus.evaluation.metrics.vqa_accuracy import processed, vqa_accuracy

PIECES = """a an The one Two ten none zero 1,000 3.5 .5 5. u.s.a. (b) red-blue x/y 50% $5 what's mike's 'tis hello,
world? yes! 12:30 a.b ; - lets shes Im dont couldntve couldn'tve y'alld've somebody'd ain't"""
WITHOUT_APOSTROPHE = [word.replace("'", "") for word in ("what's", "o'clock", "THEY'RE", "shan't")]
WORDS = [*PIECES.split(), *WITHOUT_APOSTROPHE, "\t", "\n"]


def texts(number: int):
    """Answers as people and models write them, at random but always the same."""
    draw = random.Random(number)
    for _ in range(number):
        yield draw.choice((" ", "", " ", "-", ", ", "]")).join(draw.choices(WORDS, k=draw.randint(0, 5)))


def lmms_eval(file: str):
    """One file of lmms-eval."""
    package = importlib.util.find_spec("lmms_eval")
    if package is None:
        pytest.skip("lmms-eval is not installed: pip install --no-deps lmms-eval==0.7.3")
    spec = importlib.util.spec_from_file_location(Path(file).stem, Path(package.origin).parent / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vqa_processing_equals_the_challenges():
    processor = lmms_eval("tasks/_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor()
    listed = [*processor.CONTRACTIONS, *processor.CONTRACTIONS.values(), *processor.NUMBER_MAP]
    for text in [*listed, *texts(20_000)]:
        assert processed(text) == processor(text), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("red-blue", "red blue"),
        ("red - blue", "red blue"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("Nike's", "nike 's"),
        (" an  apple\n", "apple"),
    ],
)
def test_vqa_processing(text, expected):
    assert processed(text) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_hand(matches, expected):
    """Of the ten sets of nine, those that leave out a match have one less: with 3, (7 * 3/3 + 3 * 2/3) / 10 = 0.9."""
    answers = ["Two"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert vqa_accuracy("2", answers) == pytest.approx(expected, abs=1e-12)


NUMBERS = "0|5|5.2|5.25|5.26|4.75|4.74|-5|-4.8|50%|0.5|0.52|1,000|1000|Yes|yes|no|1e3|%||2018|2016"


def test_relaxed_accuracy_equals_that_of_lmms_eval():
    theirs = lmms_eval("tasks/chartqa/utils.py").relaxed_correctness
    for said in NUMBERS.split("|"):
        for answer in NUMBERS.split("|"):
            assert relaxed_accuracy(said, [answer]) == theirs(said, answer), (said, answer)


@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("52%", "0.5", 1),
        ("-95", "-100", 1),
        ("95", "-100", 0),
        ("0.0", "0", 0),  # 5 % of nothing is nothing, so these are compared as text
        ("0", "0", 1),
        ("Blue ", "blue", 1),
        ("blues", "blue", 0),
        ("nan", "NaN", 1),  # words, not numbers
    ],
)
def test_relaxed_accuracy(said, answer, expected):
    assert relaxed_accuracy(said, [answer]) == expected
    assert relaxed_accuracy(said, ["something else", answer]) == expected


def test_anls_equals_the_package():
    anls_score = pytest.importorskip("anls").anls_score
    draw = random.Random(2)
    for _ in range(3_000):
        said, *answers = ("".join(draw.choices("aAb c", k=draw.randint(0, 8))) for _ in range(draw.randint(2, 4)))
        assert anls(said, answers) == pytest.approx(anls_score(said, answers), abs=1e-12), (said, answers)


def test_edit_distance():
    assert edit_distance("kitten", "sitting") == 3  # Levenshtein's textbook pair
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("Coca  cola", ["coca cola"], 1.0),
        ("coca cola", ["cocacola"], 1 - 1 / 9),
        ("ab", ["ac"], 0.0),  # a distance of 0.5 is not below the threshold
        ("abc", ["abz", "xyz"], 1 - 1 / 3),
        ("", ["a"], 0.0),
    ],
)
def test_anls(said, answers, expected):
    assert anls(said, answers) == pytest.approx(expected, abs=1e-12)


def test_exact_match_equals_that_of_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.functional.text.squad")._normalize_text
    for text in texts(5_000):
        assert normalised(text) == theirs(text), text


def test_exact_match():
    assert normalised("The  Cat's, a dog!") == "cats dog"
    assert exact_match("in the kitchen.", ["garden", "Kitchen", "in  kitchen"]) == 1
    assert exact_match("theatre", ["atre"]) == 0


OPTIONS = ("cat", "dog", "a red bird", "fish")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("A", "A"),
        ("b", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("D)", "D"),
        ("A. cat", "A"),
        ("B: dog", "B"),
        ("The answer is C.", "C"),
        ("The answer is a dog", "B"),
        ("answer: (B)", "B"),
        ("I think B", "B"),
        ("option (D).", "D"),
        ("Dog", "B"),
        ("It is a dog", "B"),
        ("A dog is what I see here", "B"),
        ("The correct option is D, fish", "D"),
        ("B or C", None),
        ("a cat and a dog", None),
        ("E. horse", None),
        ("E", None),
        ("", None),
    ],
)
def test_chosen_letter(said, letter):
    assert chosen_letter(said, OPTIONS) == letter


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("A dog", ("A cat", "A dog"), "B"),
        ("a dog.", ("A cat", "A dog"), "B"),
        ('"A Dog".', ("A cat", "A dog"), "B"),
        ("The answer is A", ("The answer is B", "The answer is A"), "B"),
        ("5", ("3", "5"), "B"),
        ("-5", ("5", "-5"), "B"),
        ("50", ("5", "50"), "B"),
        ("A", ("B", "A"), "A"),  # a letter is a letter
        ("A.", ("B", "A"), "A"),
        (".", ("", "dog"), None),
        ("", ("", "dog"), None),
    ],
)
def test_an_options_whole_text(said, options, letter):
    """MMBench reads the A of "A dog" as a letter."""
    assert chosen_letter(said, options) == letter


def test_chosen_letter_equals_that_of_mmbench():
    """But for single small letters, which MMBench does not read, and for E, its mark of an answer that fits nothing."""
    for package in ("pandas", "requests", "loguru"):
        pytest.importorskip(package)
    theirs = lmms_eval("tasks/mmbench/mmbench_evals.py").MMBench_Evaluator()
    answers = (
        "A|B.|(C)|D)|A. cat|B: dog|The answer is C.|dog|It is a dog|I think B|option (D).|Dog|B or C|a cat and a dog"
    )
    for said in [*answers.split("|"), "A dog is what I see here", "The correct option is D, fish", ""]:
        assert chosen_letter(said, OPTIONS) == (theirs.can_infer(said, dict(zip("ABCD", OPTIONS, strict=True))) or None)


def test_a_letter_or_b_dot_is_read_as_in_llavas_scienceqa():
    theirs = lmms_eval("tasks/scienceqa/utils.py").sqa_process_results
    for said in ("A", "b", "C.", "D. fish", "A. dog"):
        for index, letter in enumerate("ABCD"):
            score = theirs({"choices": OPTIONS, "answer": index}, [said])["exact_match"]
            assert choice_accuracy(said, [letter], OPTIONS) == score


def test_the_true_answer_may_be_an_options_text():
    assert choice_accuracy("B", ["dog"], OPTIONS) == 1
    assert choice_accuracy("A", ["dog"], OPTIONS) == 0
    assert choice_accuracy("who knows", ["dog"], OPTIONS) == 0
