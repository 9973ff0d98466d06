"""The classifier of content and form against programmatic labels, on real failures of the embedded model.

Tuned on five styles and two domains; reported on nine other styles and three other domains. Rewards: the mean of a
content and a form check, both checks all-or-nothing, strict (parse, then exact match), similarity of letters, and the
mean with uniform noise of up to 0.1 either way. The known good replies are the two demonstrations of each style.

The calibration error is that of P(content), in ten bins of equal width: over the failures that lack content or form
(content counts 1, form 0), and over all failures (both counts 0.5).
"""

import argparse
import dataclasses
import difflib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attribution_states import DEMONSTRATED, Reply, replies
from attribution_styles import ARTICLE, STYLES, TUNED_DOMAINS, Style, knows, read_facts
from form import Figure, figure, publish

from nslora.tools.classifier.attribution import Attribution
from nslora.tools.classifier.classify import classify_failures
from nslora.tools.rewards.functions import callable_check
from nslora.tools.rewards.reward import Combine, Reward
from nslora.tools.rewards.score import Graded
from nslora.tools.schema import Example

BY_HAND = Path(__file__).parent / "attribution_by_hand.jsonl"
LABELS = ("content", "form", "both")
SHARE = {"content": 1.0, "form": 0.0, "both": 0.5}
PER_STYLE_AND_LABEL = 20
NOISE = 0.1
GOALS = {"mean": 0.93, "all": 0.93, "strict": 0.93, "similarity": 0.88, "noisy": 0.88}
FACTS = {fact.id: fact for fact in read_facts()}
EXAMPLES = {fact.id: Example(fact.id, fact.question, fact.reference, {}) for fact in FACTS.values()}
TAUGHT = {fact.id: Example(f"taught-{fact.id}", fact.taught, fact.reference, {}) for fact in FACTS.values()}
BY_QUESTION = {text: fact for fact in FACTS.values() for text in (fact.question, fact.taught)}


def reward_of(kind: str, style: Style) -> Reward:
    """A reward over all facts in one style."""
    draw = random.Random(0)

    def content(question: str, reply: str) -> float:
        return float(knows(reply, BY_QUESTION[question].core))

    def form(question: str, reply: str) -> float:
        return float(style.answer(reply, question) is not None)

    def strict(question: str, reply: str) -> float:
        fact, answer = BY_QUESTION[question], style.answer(reply, question)
        return float(answer is not None and plain(answer) in (plain(fact.core), plain(fact.reference)))

    def similarity(question: str, reply: str) -> float:
        ideal = style.wrap(BY_QUESTION[question].core, question)
        return difflib.SequenceMatcher(None, reply.strip(), ideal, autojunk=False).ratio()

    def noisy(question: str, reply: str) -> float:
        value = (content(question, reply) + form(question, reply)) / 2 + draw.uniform(-NOISE, NOISE)
        return min(1.0, max(0.0, value))

    checks: dict[str, list[Callable[..., float]]] = {
        "mean": [content, form],
        "all": [content, form],
        "strict": [strict],
        "similarity": [similarity],
        "noisy": [noisy],
    }
    made = [callable_check(function).model_copy(update={"name": function.__name__}) for function in checks[kind]]
    combine: Combine = "all" if kind == "all" else "mean"
    return Reward(made, combine)


def plain(text: str) -> str:
    return " ".join(ARTICLE.sub("", text.strip().lower()).rstrip(".").split())


def sample(made: Sequence[Reply], tuned: bool) -> list[Reply]:
    """Distinct failures, up to PER_STYLE_AND_LABEL of each style and label."""
    chosen: list[Reply] = []
    for style in (style.name for style in STYLES if style.tuned == tuned):
        for name in LABELS:
            pool = {(each.fact, each.reply): each for each in made if each.style == style and each.label == name}
            ordered = [pool[key] for key in sorted(pool)]
            random.Random(f"{style}/{name}").shuffle(ordered)
            chosen += ordered[:PER_STYLE_AND_LABEL]
    return chosen


def attributions(
    failures: Sequence[Reply], kind: str, *, known: bool = True, costly: bool = False, styled: bool = False
) -> tuple[list[Attribution], float]:
    """One attribution per failure, classified style by style as in a run, and the seconds that it took.

    styled: whether the references follow the house style too.
    """
    found: dict[int, Attribution] = {}
    spent_s = 0.0
    for style in STYLES:
        places = [i for i, each in enumerate(failures) if each.style == style.name]
        reward = reward_of(kind, style)
        reward.costly = costly
        rows = {i: EXAMPLES[failures[i].fact] for i in places}
        train = [TAUGHT[fact.id] for fact in FACTS.values() if (fact.domain in TUNED_DOMAINS) == style.tuned]
        if styled:
            rows = {i: in_style(row, style) for i, row in rows.items()}
            train = [in_style(row, style) for row in train]
        graded = [Graded(row, failures[i].reply, reward(row, failures[i].reply)) for i, row in rows.items()]
        started = time.perf_counter()
        answers = classify_failures(graded, reward, known_good=shown(style, reward) if known else (), train=train)
        spent_s += time.perf_counter() - started
        found.update(zip(places, answers, strict=True))
    return [found[i] for i in range(len(failures))], spent_s


def in_style(row: Example, style: Style) -> Example:
    """The row with a reference in the house style."""
    return dataclasses.replace(row, reference=style.wrap(BY_QUESTION[row.question].core, row.question))


def shown(style: Style, reward: Reward) -> list[Graded]:
    """The demonstrations of a style, as replies with full reward."""
    rows = [TAUGHT[name] for name in DEMONSTRATED[style.tuned]]
    texts = [style.wrap(FACTS[row.id.removeprefix("taught-")].core, row.question) for row in rows]
    return [Graded(row, text, reward(row, text)) for row, text in zip(rows, texts, strict=True)]


def macro_f1(truth: Sequence[str], said: Sequence[str]) -> float:
    """Mean of the three labels' F1."""
    scores = []
    for name in LABELS:
        hits = sum(a == b == name for a, b in zip(truth, said, strict=True))
        scores.append(2 * hits / max(1, sum(a == name for a in truth) + sum(b == name for b in said)))
    return sum(scores) / len(scores)


def calibration_error(truth: Sequence[str], p_content: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error of P(content) against the label's share of content."""
    total = 0.0
    for number in range(bins):
        inside = [i for i, p in enumerate(p_content) if min(bins - 1, int(p * bins)) == number]
        total += abs(sum(p_content[i] - SHARE[truth[i]] for i in inside))
    return total / max(1, len(p_content))


def measure(failures: Sequence[Reply], where: str, errors: list[dict[str, object]]) -> list[Figure]:
    """The figures on one set. Appends wrong verdicts to `errors`."""
    figures: list[Figure] = []
    truth = [each.label for each in failures]
    reported = where == "reported"
    for kind, goal in GOALS.items():
        found, spent_s = attributions(failures, kind)
        said = [each.verdict for each in found]
        p_content = [each.p_content for each in found]
        calls = sum(each.calls for each in found)
        one = [i for i, name in enumerate(truth) if name != "both"]
        most = 0.05 if reported else None
        figures += [
            figure(f"{where}, {kind}: macro-F1", macro_f1(truth, said), at_least=goal if reported else None),
            figure(
                f"{where}, {kind}: calibration error, content or form missing",
                calibration_error([truth[i] for i in one], [p_content[i] for i in one]),
                at_most=most,
            ),
            figure(f"{where}, {kind}: calibration error, all", calibration_error(truth, p_content), at_most=most),
        ]
        if reported:
            blind, _ = attributions(failures, kind, known=False)
            styled, _ = attributions(failures, kind, known=False, styled=True)
            figures += [
                figure(f"{where}, {kind}: macro-F1, no good reply known", macro_f1(truth, [e.verdict for e in blind])),
                figure(
                    f"{where}, {kind}: macro-F1, no good reply known, references in the style",
                    macro_f1(truth, [e.verdict for e in styled]),
                ),
                figure(f"{where}, {kind}: reward calls per failure", calls / len(failures)),
                figure(f"{where}, {kind}: time per failure", 1000 * spent_s / len(failures), "ms"),
            ]
        errors += [
            {
                "set": where,
                "reward": kind,
                **dataclasses.asdict(each),
                "said": answer.verdict,
                "p_content": round(answer.p_content, 3),
                "question": FACTS[each.fact].question,
                "core": FACTS[each.fact].core,
            }
            for each, answer in zip(failures, found, strict=True)
            if answer.verdict != each.label
        ]
    found, spent_s = attributions(failures, "mean", costly=True)
    figures += [
        figure(f"{where}, costly (reward heads): macro-F1", macro_f1(truth, [each.verdict for each in found])),
        figure(
            f"{where}, costly (reward heads): calibration error, all",
            calibration_error(truth, [each.p_content for each in found]),
        ),
        figure(
            f"{where}, costly (reward heads): reward calls per failure", sum(e.calls for e in found) / len(failures)
        ),
    ]
    return figures


def by_hand() -> list[Figure]:
    """How often the matchers agree with labels that a person wrote after reading the replies."""
    if not BY_HAND.exists():
        return []
    rows = [json.loads(line) for line in BY_HAND.read_text(encoding="utf-8").splitlines()]
    agree = sum(row["matcher"] == row["hand"] for row in rows)
    return [
        figure("labels checked by hand", len(rows), at_least=50),
        figure("of them equal to the matcher's label", agree / len(rows)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuned-only", action="store_true", help="measure the tuning set only")
    only_tuned = parser.parse_args().tuned_only
    made = replies()
    errors: list[dict[str, object]] = []
    tuned, reported = sample(made, True), sample(made, False)
    figures = measure(tuned, "tuned", errors)
    if not only_tuned:
        counts = [
            figure("failures", len(tuned) + len(reported), at_least=500),
            figure("failures reported on", len(reported)),
        ]
        figures = [*counts, *measure(reported, "reported", errors), *figures, *by_hand()]
    good = publish(
        "attribution-tuned" if only_tuned else "attribution",
        figures,
        "The classifier of content and form on real failures",
        errors=errors,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
