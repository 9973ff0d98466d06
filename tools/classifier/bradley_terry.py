"""Two Bradley-Terry reward heads per task, content and form, for rewards that cost money or are noisy.

Trained on preference pairs made from the task's own train rows, with no reward call: each row's reference and another
row's reference (right and wrong content), in a layout known to be good and in others (right and wrong form). A head
is a linear score w.x of cheap text features; P(a preferred to b) = sigmoid(w.(x_a - x_b)) (Bradley and Terry 1952).
Platt scaling turns what a reply lacks against its row's best reply into a deficit in [0, 1].
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nslora.tools.classifier.answer_core import FUNCTION_WORDS, WORD, CoreBook
from nslora.tools.classifier.attribution import Attribution, VerdictName
from nslora.tools.classifier.layouts import Layout, core_of, states, unescape, without_function_words

if TYPE_CHECKING:
    from nslora.tools.rewards.score import Graded
    from nslora.tools.schema import Example

Floats = npt.NDArray[np.float64]

# Forms that models fall into by themselves; those alike to the good layout are left out.
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
DEFICIT = 0.5  # of a calibrated probability
BLENDED_DEFICIT = 0.33  # of an average of two: one sure voice and a doubtful one suffice
SENTENCE_WORDS = 5  # references of more words are searched for their answer, where good replies hold less
FITTED_ROWS = 200  # more train rows do not change a dozen weights
BAD_LAYOUTS = 4  # a train row
LEAST_REFERENCES = 2  # a wrong answer is another row's right one


@dataclass(frozen=True)
class Head:
    """Linear score of standardised features, with Platt's scale and shift for the lack against the best reply."""

    weights: tuple[float, ...]
    scale: float
    shift: float

    def score(self, features: Floats) -> float:
        return float(np.dot(self.weights, features))

    def deficit(self, lack: float) -> float:
        """Probability that a reply which lacks this much against the row's best one is wrong."""
        return float(1 / (1 + np.exp(-np.clip(self.scale * lack + self.shift, -30, 30))))


@dataclass(frozen=True)
class RewardHeads:
    """The content head and the form head of one task. cores: how the answers in its sentence references look."""

    layout: Layout
    words: float  # mean words of an answer
    content: Head
    form: Head
    cores: CoreBook = field(default_factory=CoreBook, compare=False)
    known_cores: dict[tuple[str, str], str] = field(default_factory=dict, compare=False)

    def core(self, example: Example) -> str:
        """The answer in the row's reference: all of it, or the likeliest stretch where good replies held less."""
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
        """Attributions without reward calls, in the order of the failures; rows without reference are form."""
        return [self._one(failure) for failure in failures]

    def _one(self, failure: Graded) -> Attribution:
        example, own = failure.example, failure.score.value
        missing_reward = max(0.0, 1.0 - own)
        if not example.reference:
            return Attribution(example.id, 0.0, 1.0, 0.0, missing_reward, "form", None, own, 0)
        best = self.layout.wrap(self.core(example), example.question)
        lacks = [
            head.score(features(example, best, self)) - head.score(features(example, failure.reply, self))
            for head, features in ((self.content, _content_of), (self.form, _form_of))
        ]
        content, form = self.content.deficit(lacks[0]), self.form.deficit(lacks[1])
        p_content = content / (content + form) if content + form > 0 else 0.5
        verdict = _verdict(content, form)
        return Attribution(
            example.id, content, form, p_content, missing_reward, verdict, best, own, 0, DEFICIT, DEFICIT
        )


def _verdict(content: float, form: float) -> VerdictName:
    if content > DEFICIT and form > DEFICIT:
        return "both"
    return "content" if content >= form else "form"


def fit_heads(
    rows: Sequence[Example],
    layout: Layout,
    *,
    failing: Sequence[Layout] = (),
    known_good: Sequence[Graded] = (),
    seed: int = 0,
) -> RewardHeads | None:
    """Heads from train rows and one layout known to earn full reward; None where all references are alike, since a
    wrong answer is made from another row's.

    failing: layouts seen in failing replies, beside the common ones. known_good: replies that earned full reward; they
    show which part of a sentence reference is its answer. Without a known good layout there is nothing to train a form
    head on (measured: AUROC 0.25).
    """
    draw = random.Random(seed)
    known = [row for row in rows if row.reference]
    known = draw.sample(known, min(FITTED_ROWS, len(known)))
    references = sorted({row.reference for row in known if row.reference})
    if len(references) < LEAST_REFERENCES:
        return None
    cores = CoreBook()
    for good in known_good:
        cores.note(good.example.reference or "", core_of(good) or "")
    blank = Head((), 1.0, 0.0)
    heads = RewardHeads(layout, 0.0, blank, blank, cores)
    answers = sorted({heads.core(row) for row in known})
    heads = replace(heads, words=sum(len(WORD.findall(answer)) for answer in answers) / len(answers))
    bad = [each for each in (*COMMON_LAYOUTS, *failing) if each.wrap("Qx 7", "") != layout.wrap("Qx 7", "")]
    content_pairs: list[tuple[Floats, Floats]] = []
    form_pairs: list[tuple[Floats, Floats]] = []
    for row in known:
        right = heads.core(row)
        wrong = draw.choice([text for text in answers if text != right] or references)
        for each in draw.sample(bad, min(BAD_LAYOUTS, len(bad))):
            texts = [frame.wrap(core, row.question) for frame in (layout, each) for core in (right, wrong)]
            c, f = ([features(row, text, heads) for text in texts] for features in (_content_of, _form_of))
            # 0: good layout, right; 1: good layout, wrong; 2: bad layout, right; 3: bad layout, wrong
            content_pairs += [(c[0], c[1]), (c[2], c[3]), (c[2], c[1])]
            form_pairs += [(f[0], f[2]), (f[1], f[3]), (f[1], f[2])]
    return replace(heads, content=_fit(content_pairs), form=_fit(form_pairs))


def _fit(pairs: Sequence[tuple[Floats, Floats]]) -> Head:
    """Logistic regression on differences, no intercept; then Platt on what the worse one lacks against the better."""
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
    """(3,) whether the reply states the answer, share of its words and of its letter pairs found in the reply."""
    core = heads.core(example)
    text = unescape(reply).lower()
    words = [word.lower() for word in WORD.findall(core) if word.lower() not in FUNCTION_WORDS]
    said = {word.lower() for word in WORD.findall(text)}
    pairs = {core.lower()[i : i + 2] for i in range(len(core) - 1)}
    shared = sum(pair in text for pair in pairs) / max(1, len(pairs))
    return np.array([states(reply, core), sum(word in said for word in words) / max(1, len(words)), shared], float)


def _form_of(example: Example, reply: str, heads: RewardHeads) -> Floats:
    """Features of the reply's form, as distances from the good layout.

    Length and marks are compared with the layout around the row's answer, case and ends with the layout around the
    reply's own: a wrong number in place of a name is no fault of form.
    """
    good = own = heads.layout.wrap(heads.core(example), example.question)
    slot = heads.layout.slot(reply, example.question)
    filling = reply[slot.start : slot.end] if slot else ""
    if slot:
        own = heads.layout.wrap(unescape(filling) if heads.layout.escaped else filling, example.question)
    fits = float(slot is not None and len(WORD.findall(filling)) <= max(6.0, 2 * heads.words))
    distances = [np.abs(_length(reply) - _length(good)), np.abs(_look(reply) - _look(own))]
    return np.concatenate([[float(slot is not None), fits], *(-each for each in distances)])


def _length(text: str) -> Floats:
    """Length in words, and marks (capped at 3)."""
    return np.array([np.log1p(len(text.split())), *(min(3, text.count(mark)) for mark in MARKS)], float)


def _look(text: str) -> Floats:
    """Share of capitals among letters, and the kinds of the first and last character."""
    letters = [letter for letter in text if letter.isalpha()]
    capitals = sum(letter.isupper() for letter in letters) / max(1, len(letters))
    ends = [float(test(edge)) for edge in (text.strip()[:1], text.strip()[-1:]) for test in (str.isalpha, str.isdigit)]
    return np.array([2 * capitals, *ends], float)


def blend(repairs: Sequence[Attribution], heads: Sequence[Attribution], *, weight: float = 0.5) -> list[Attribution]:
    """Verdicts from averaged deficits, and P(content) averaged; what the reward itself said of the repairs stays."""
    blended: list[Attribution] = []
    for one, other in zip(repairs, heads, strict=True):
        content = (1 - weight) * one.content_deficit + weight * other.content_deficit
        form = (1 - weight) * one.form_deficit + weight * other.form_deficit
        verdict: VerdictName = "content" if content >= form else "form"
        if content > BLENDED_DEFICIT and form > BLENDED_DEFICIT:
            verdict = "both"
        p_content = (1 - weight) * one.p_content + weight * other.p_content
        blended.append(replace(one, p_content=p_content, verdict=verdict))
    return blended
