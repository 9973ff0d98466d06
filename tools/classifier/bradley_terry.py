"""Two Bradley-Terry reward heads per task, content and form, for rewards that cost money or are noisy.

They are trained on preference pairs made from the task's own train rows, without a reward call: each row's reference
and another row's (right and wrong content), in a layout known to be good and in other layouts (right and wrong form).
A head is a linear score w.x of cheap text features, with P(a preferred to b) = sigmoid(w.(x_a - x_b)) (Bradley and
Terry 1952). Platt scaling (Platt 1999) turns the difference to the row's best reply into a deficit in [0, 1].
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, WORD, CoreBook, words_of
from nslora.tools.classifier.attribution import Attribution, verdict_of, without_a_reference
from nslora.tools.classifier.layouts import Layout, cores_of, states, unescape, without_function_words
from nslora.tools.classifier.probability import sigmoid
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

Floats = npt.NDArray[np.float64]

# Forms that models often produce by themselves; those that equal the good layout are left out.
COMMON_LAYOUTS = (
    Layout(),
    Layout(suffix="."),
    Layout(case="upper"),
    Layout(case="lower"),
    Layout("It is ", "."),
    Layout("- "),
    Layout("Answer: "),
    Layout('{"result": "', '"}', escaped=True),
    Layout("I am not sure, but I believe that it is ", ". There is more to say about this, as it depends."),
    Layout("The answer to your question is ", ", as far as it is known.\n\nLet me know if there is anything else."),
)
MARKS = '{}[]<>":#*-.!?\n'
DEFICIT = 0.5  # limit of a calibrated probability
BLENDED_DEFICIT = 0.33  # limit of an average of two: one sure and one doubtful opinion suffice
SENTENCE_WORDS = 5  # longer references are searched for their answer, if good replies hold less than the reference
FITTED_ROWS = 200  # more train rows do not change a dozen weights
BAD_LAYOUTS = 4  # per train row
LEAST_REFERENCES = 2  # a wrong answer is another row's right one


@dataclass(frozen=True)
class Head:
    """A linear score of text features, with Platt's scale and shift for what a reply lacks against the best reply."""

    weights: tuple[float, ...]
    scale: float
    shift: float

    def deficit(self, best: Floats, given: Floats) -> float:
        """Probability that a reply is wrong, from its features and those of the row's best reply, both (F,)."""
        lack = float(np.dot(self.weights, best)) - float(np.dot(self.weights, given))
        return sigmoid(self.scale * lack + self.shift)


@dataclass
class RewardHeads:
    """The content head and the form head of one task; `fit_heads` makes them.

    Attributes:
        layout: The layout known to earn full reward.
        cores: What the answers in sentence references look like.
        words: Mean number of words of an answer.
    """

    layout: Layout
    cores: CoreBook = field(compare=False)
    words: float = 0.0
    content: Head = Head((), 1.0, 0.0)
    form: Head = Head((), 1.0, 0.0)
    known_cores: dict[tuple[str, str], str] = field(default_factory=dict, compare=False)

    def core(self, example: Example) -> str:
        """The answer in the row's reference: all of it, or its likeliest part if good replies held less."""
        reference = (example.reference or "").strip()
        if not self.cores.shapes:
            return reference
        if len(WORD.findall(reference)) <= SENTENCE_WORDS:
            return without_function_words(reference)
        key = (reference, example.question)
        if key not in self.known_cores:
            self.known_cores[key] = next(iter(self.cores.likely(*key)), reference)
        return self.known_cores[key]

    def attribute(self, failures: Sequence[Graded]) -> list[Attribution]:
        """Attribute failures without reward calls, in their order; rows without a reference lack form."""
        return [self._one(each) if each.example.reference else without_a_reference(each) for each in failures]

    def _one(self, failure: Graded) -> Attribution:
        row, own = failure.example, failure.score.value
        best = self.layout.wrap(self.core(row), row.question)
        content, form = (
            head.deficit(features(row, best, self), features(row, failure.reply, self))
            for head, features in ((self.content, _content_of), (self.form, _form_of))
        )
        share, missing_reward = content / (content + form), max(0.0, 1.0 - own)
        limits = (DEFICIT, DEFICIT)
        verdict = verdict_of(content, form, *limits)
        return Attribution(row.id, content, form, share, missing_reward, verdict, best, own, 0, *limits)


def fit_heads(
    rows: Sequence[Example],
    layout: Layout,
    *,
    failing: Sequence[Layout] = (),
    known_good: Sequence[Graded] = (),
    seed: int = 0,
) -> RewardHeads | None:
    """Fit both heads on train rows.

    Args:
        rows: Train rows; at most `FITTED_ROWS` of those with a reference are used.
        layout: A layout known to earn full reward. Without one there is nothing to train a form head on (measured:
            AUROC 0.25).
        failing: Layouts of failing replies, used as wrong forms beside `COMMON_LAYOUTS`.
        known_good: Replies that earned full reward; they show which part of a sentence reference is its answer.
        seed: Seed of the choice of rows, wrong answers and wrong forms.

    Returns:
        The heads, or None if all references are alike: a wrong answer is made from another row's reference.
    """
    draw = random.Random(seed)
    known = [row for row in rows if row.reference]
    known = draw.sample(known, min(FITTED_ROWS, len(known)))
    references = sorted({row.reference for row in known if row.reference})
    if len(references) < LEAST_REFERENCES:
        return None
    heads = RewardHeads(layout, cores_of(known_good))
    answers = sorted({heads.core(row) for row in known})
    heads.words = sum(len(WORD.findall(answer)) for answer in answers) / len(answers)
    bad = [each for each in (*COMMON_LAYOUTS, *failing) if each.wrap("Qx 7", "") != layout.wrap("Qx 7", "")]
    content_pairs: list[tuple[Floats, Floats]] = []
    form_pairs: list[tuple[Floats, Floats]] = []
    for row in known:
        right = heads.core(row)
        wrong = draw.choice([text for text in answers if text != right] or references)
        for each in draw.sample(bad, min(BAD_LAYOUTS, len(bad))):
            texts = [form.wrap(core, row.question) for form in (layout, each) for core in (right, wrong)]
            c, f = ([features(row, text, heads) for text in texts] for features in (_content_of, _form_of))
            # 0: good layout, right; 1: good layout, wrong; 2: bad layout, right; 3: bad layout, wrong
            content_pairs += [(c[0], c[1]), (c[2], c[3]), (c[2], c[1])]
            form_pairs += [(f[0], f[2]), (f[1], f[3]), (f[1], f[2])]
    heads.content, heads.form = _fit(content_pairs), _fit(form_pairs)
    return heads


def blend(repair: Attribution, head: Attribution, *, weight: float = 0.5) -> Attribution:
    """Average two opinions on one failure.

    Args:
        repair: Attribution by repair.
        head: Attribution by the heads.
        weight: Weight of the heads.

    Returns:
        The attribution by repair with the averaged P(content) and the verdict of the averaged deficits. Its deficits
        and rewards stay as the reward gave them.
    """

    def mean(one: float, other: float) -> float:
        return (1 - weight) * one + weight * other

    content = mean(repair.content_deficit, head.content_deficit)
    form = mean(repair.form_deficit, head.form_deficit)
    verdict = verdict_of(content, form, BLENDED_DEFICIT, BLENDED_DEFICIT)
    return replace(repair, p_content=mean(repair.p_content, head.p_content), verdict=verdict)


def _fit(pairs: Sequence[tuple[Floats, Floats]]) -> Head:
    """Logistic regression on differences (better - worse) without intercept, then Platt scaling of their scores."""
    from sklearn.linear_model import LogisticRegression

    differences = np.array([better - worse for better, worse in pairs])
    sides = np.concatenate([differences, -differences])
    labels = np.repeat([1, 0], len(differences))
    model: Any = LogisticRegression(fit_intercept=False, C=1.0, max_iter=500).fit(sides, labels)
    weights = np.asarray(model.coef_[0], dtype=np.float64)
    lacks = differences @ weights
    platt: Any = LogisticRegression(C=10.0).fit(
        np.concatenate([np.zeros_like(lacks), lacks])[:, None], np.repeat([0, 1], len(lacks))
    )
    return Head(tuple(float(each) for each in weights), float(platt.coef_[0][0]), float(platt.intercept_[0]))


def _content_of(example: Example, reply: str, heads: RewardHeads) -> Floats:
    """(3,) whether the reply states the answer; shares of the answer's words and letter pairs that the reply holds."""
    core = heads.core(example)
    text = unescape(reply).lower()
    words = [word for word in words_of(core) if word not in FUNCTION_WORDS]
    said = set(words_of(text))
    pairs = {core.lower()[i : i + 2] for i in range(len(core) - 1)}
    shared = sum(pair in text for pair in pairs) / max(1, len(pairs))
    return np.array([states(reply, core), sum(word in said for word in words) / max(1, len(words)), shared], float)


def _form_of(example: Example, reply: str, heads: RewardHeads) -> Floats:
    """(2 + 16 + 5,) whether the reply has the good layout, whether its answer is short, and distances to the layout.

    Length and marks are compared with the layout around the row's answer, case and ends with the layout around the
    reply's own: a wrong number in place of a name is no fault of form.
    """
    good = own = heads.layout.wrap(heads.core(example), example.question)
    slot = heads.layout.slot(reply, example.question)
    filling = slot.of(reply) if slot else ""
    if slot:
        own = heads.layout.wrap(unescape(filling) if heads.layout.escaped else filling, example.question)
    fits = float(slot is not None and len(WORD.findall(filling)) <= max(6.0, 2 * heads.words))
    distances = [np.abs(_length(reply) - _length(good)), np.abs(_look(reply) - _look(own))]
    return np.concatenate([[float(slot is not None), fits], *(-each for each in distances)])


def _length(text: str) -> Floats:
    """(16,) logarithm of the length in words, and the count of each mark, at most 3."""
    return np.array([np.log1p(len(text.split())), *(min(3, text.count(mark)) for mark in MARKS)], float)


def _look(text: str) -> Floats:
    """(5,) twice the share of capitals among letters, and the kinds of the first and last character."""
    letters = [letter for letter in text if letter.isalpha()]
    capitals = sum(letter.isupper() for letter in letters) / max(1, len(letters))
    ends = [float(test(edge)) for edge in (text.strip()[:1], text.strip()[-1:]) for test in (str.isalpha, str.isdigit)]
    return np.array([2 * capitals, *ends], float)
