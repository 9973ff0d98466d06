"""DSPy's optimisers, by DSPy's documentation, on the policy behind a local OpenAI-compatible server.

The program is `question -> answer`. The metric is the task's reward on the answer field: a number for evaluation, and
passed or not if a trace may become a demonstration. Train and validation rows are the task's; references are
the labels.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from chat_server import serve_chat
from peers_meter import BatchedChat
from peers_recipes import THREADS, Bench, Outcome, clipped

from nslora.tools.schema import Dialogue

LM_NAME = "openai/policy"
# Extra reply tokens for DSPy's answer format (field markers).
FORMAT_TOKENS = 40
PROPOSAL_TOKENS = 160
# DSPy's documentation uses a fifth of the rows for bootstrapping and the rest for validation. Here the splits are
# fixed: 24 of the 60 train rows for bootstrapping, the 30 validation rows for validation.
BOOTSTRAP_ROWS = 24
DEMONSTRATIONS = 4  # as in its examples: 4 bootstrapped, 4 labelled
CANDIDATES = 10  # as in its example of random search, besides three that it always tries
MIPRO_CANDIDATES, MIPRO_TRIALS = 3, 6  # trials as MIPROv2 recommends for three candidates
SAFETY = 1.2  # a candidate may cost this many times the estimate
ERRORS = 100_000  # an unparsable reply scores 0 and must not end a compilation
NEEDS_PROPOSER = (
    "a language model that can write instructions (prompt_model); here the 135M model proposes its own, greedily"
)
NEEDS_TRAINING = "an SGLang server to launch, and DSPy's own fine-tuning for the weight steps"


def load_dspy() -> ModuleType:
    """DSPy without its caches, so that every request is answered and counted."""
    import dspy

    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    return dspy


@contextmanager
def served(bench: Bench) -> Iterator[tuple[ModuleType, Any, Any]]:
    """DSPy, its task model and its prompt model; both models are the policy."""
    dspy = load_dspy()
    bench.batcher.ahead = lambda dialogue: ahead_of(bench, dialogue)
    task = BatchedChat(batcher=bench.batcher, max_tokens=bench.task.max_new_tokens + FORMAT_TOKENS)
    proposer = BatchedChat(batcher=bench.batcher, max_tokens=PROPOSAL_TOKENS, edits=True)
    with serve_chat(task) as for_task, serve_chat(proposer) as for_proposals:
        # A busy machine may need minutes for a batch, and DSPy scores a request that timed out as a failure.
        options = {"api_key": "local", "cache": False, "num_retries": 0, "temperature": 0.0, "timeout": 3600.0}
        lm = dspy.LM(LM_NAME, api_base=for_task.base_url, **options)
        prompt_lm = dspy.LM(LM_NAME, api_base=for_proposals.base_url, **options)
        with dspy.context(lm=lm, max_errors=ERRORS, num_threads=THREADS), errors_of("dspy") as logged:
            yield dspy, lm, prompt_lm
        # DSPy scores every error as 0, but a missing reply is not a reply of the model.
        if lost := [text for each in logged if "[openai/" in (text := each.getMessage())]:
            raise RuntimeError(f"{len(lost)} requests of DSPy got no answer from the local server: {clipped(lost[0])}")


def examples(dspy: ModuleType, rows: Any) -> list[Any]:
    """The task's rows as DSPy examples."""
    return [
        dspy.Example(question=row.question, answer=str(row.reference), row=row).with_inputs("question") for row in rows
    ]


def metric_of(bench: Bench) -> Callable[..., Any]:
    """The task's reward on the answer field."""

    def metric(example: Any, prediction: Any, trace: Any = None, *_: Any) -> Any:
        score = bench.task.reward(example.row, str(prediction.answer))
        return score.value if trace is None else score.passed

    return metric


def on_test(bench: Bench, program: Any, lm: Any) -> tuple[list[str], int]:
    """The program's answers to the test questions ("" if DSPy cannot parse a reply), and how many it cannot parse."""
    dspy = load_dspy()

    def answer(row: Any) -> str | None:
        with dspy.context(lm=lm):
            try:
                return str(program(question=row.question).answer)
            except dspy.utils.exceptions.AdapterParseError:
                return None

    with bench.meter.paused(), ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(answer, bench.task.test))
    return [answer or "" for answer in answers], sum(answer is None for answer in answers)


def outcome(
    bench: Bench,
    program: Any,
    lm: Any,
    settings: dict[str, Any],
    needs: str = "",
    breaks: list[dict[str, str]] | None = None,
) -> Outcome:
    """The test answers of a compiled program, and its parts."""
    predictor = program.predictors()[0]
    replies, unparsed = on_test(bench, program, lm)
    return Outcome(
        replies,
        f"a DSPy program (JSON): an instruction of {len(predictor.signature.instructions.split())} words, "
        f"{len(predictor.demos)} demonstrations, in DSPy's chat format",
        {
            **settings,
            "instruction": predictor.signature.instructions,
            "demonstrations": len(predictor.demos),
            "bootstrapped": sum(bool(demo.get("augmented")) for demo in predictor.demos),
            "unparsed_test_replies": unparsed,
            "labels": "references",
        },
        needs,
        breaks or [],
    )


def random_search(bench: Bench) -> Outcome:
    """BootstrapFewShotWithRandomSearch: as many of its candidates, in its order, as the compute allows."""
    with served(bench) as (dspy, lm, _):
        train, validation = examples(dspy, bench.task.train[:BOOTSTRAP_ROWS]), examples(dspy, bench.task.validation)
        tried: list[tuple[float, int, Any]] = []

        def candidate(number: int) -> None:
            optimizer = dspy.BootstrapFewShotWithRandomSearch(
                metric=metric_of(bench),
                max_bootstrapped_demos=DEMONSTRATIONS,
                max_labeled_demos=DEMONSTRATIONS,
                num_candidate_programs=CANDIDATES,
                num_threads=THREADS,
                max_errors=ERRORS,
            )
            program = optimizer.compile(
                dspy.Predict("question -> answer"), trainset=train, valset=validation, restrict=[number]
            )
            tried.append((float(program.candidate_programs[0]["score"]), -number, program))

        for number in (-3, -2):  # no demonstrations; labelled ones only
            before = bench.meter.tflop
            candidate(number)
        evaluation = bench.meter.tflop - before
        # In the worst case every train row is asked before a candidate is evaluated.
        dearest = SAFETY * evaluation * (1 + len(train) / len(validation))
        for number in range(-1, CANDIDATES):
            if bench.meter.left_tflop >= dearest:
                candidate(number)
        score, number, program = max(tried, key=lambda each: each[:2])  # the first of ties, as in DSPy
        return outcome(
            bench,
            program,
            lm,
            {
                "candidates_tried": len(tried),
                "candidates_documented": CANDIDATES + 3,
                "chosen": -number,
                "validation_score": score,
                "bootstrap_rows": len(train),
            },
        )


def mipro(bench: Bench) -> Outcome:
    """MIPROv2 with three candidates and the trials that it recommends for them."""
    with served(bench) as (dspy, lm, prompt_lm):
        train, validation = examples(dspy, bench.task.train[:BOOTSTRAP_ROWS]), examples(dspy, bench.task.validation)
        optimizer = dspy.MIPROv2(
            metric=metric_of(bench),
            prompt_model=prompt_lm,
            task_model=lm,
            auto=None,
            num_candidates=MIPRO_CANDIDATES,
            max_bootstrapped_demos=DEMONSTRATIONS,
            max_labeled_demos=DEMONSTRATIONS,
            num_threads=THREADS,
            max_errors=ERRORS,
            seed=9 + bench.seed,
        )
        settings: dict[str, Any] = {
            "candidates": MIPRO_CANDIDATES,
            "trials": MIPRO_TRIALS,
            "bootstrap_rows": len(train),
        }
        student = dspy.Predict("question -> answer")
        try:
            program = optimizer.compile(
                student, trainset=train, valset=validation, num_trials=MIPRO_TRIALS, minibatch=False
            )
        except Exception as error:  # recorded as data: how the optimiser fails on this model
            return outcome(bench, student, lm, settings, NEEDS_PROPOSER, [broke("compile", error)])
        settings["validation_score"] = float(program.score)
        return outcome(bench, program, lm, settings, NEEDS_PROPOSER)


def better_together(bench: Bench) -> Outcome:
    """BetterTogether: first with the documented provider for local models, then with a server that already runs.

    The prompt step is random search with no or labelled demonstrations: enough to reach the weight step.
    """
    from dspy.clients.lm_local import LocalProvider

    class Launched(LocalProvider):
        """Trains as DSPy does; launches no server, since one runs."""

        @staticmethod
        def launch(lm: Any, launch_kwargs: Any = None) -> None: ...

        @staticmethod
        def kill(lm: Any, launch_kwargs: Any = None) -> None: ...

    with served(bench) as (dspy, lm, _):
        breaks, program = [], dspy.Predict("question -> answer")
        for provider in (LocalProvider(), Launched()):
            local = dspy.LM(f"openai/local:{bench.model}", provider=provider, **lm.kwargs)
            student = dspy.Predict("question -> answer")
            student.set_lm(local)
            optimizer = dspy.BetterTogether(
                metric=metric_of(bench),
                w=dspy.BootstrapFinetune(metric=metric_of(bench), num_threads=THREADS),
                p=dspy.BootstrapFewShotWithRandomSearch(
                    metric=metric_of(bench), max_labeled_demos=DEMONSTRATIONS, num_threads=THREADS, max_errors=ERRORS
                ),
            )
            with errors_of("dspy.teleprompt.bettertogether") as logged:
                try:
                    program = optimizer.compile(
                        student,
                        trainset=examples(dspy, bench.task.train),
                        strategy="p -> w",
                        valset=examples(dspy, bench.task.validation),
                        num_threads=THREADS,
                        max_errors=ERRORS,
                        optimizer_compile_args={"p": {"restrict": [-3, -2]}},
                        seed=bench.seed,
                    )
                except Exception as error:  # recorded as data
                    breaks.append(broke(type(provider).__name__, error))
            breaks += [
                broke(type(provider).__name__, each.exc_info[1])
                for each in logged
                if each.exc_info and each.exc_info[1]
            ]
        return outcome(bench, program, lm, {"strategy": "p -> w"}, NEEDS_TRAINING, breaks)


def broke(where: str, error: BaseException) -> dict[str, str]:
    """Place and message of an error: the innermost frames, and the first error of its chain."""
    frames = traceback.extract_tb(error.__traceback__)
    last = " > ".join(f"{frame.filename.rpartition('site-packages/')[2]}:{frame.name}" for frame in frames[-2:])
    first = error
    while (before := first.__cause__ or (None if first.__suppress_context__ else first.__context__)) is not None:
        first = before
    message = clipped(error) if first is error else f"{clipped(error)} -- after {clipped(first)}"
    return {"where": f"{where}: {last}", "message": message}


@contextmanager
def errors_of(*names: str) -> Iterator[list[logging.LogRecord]]:
    """Collect the errors that DSPy logs instead of raising them."""
    found: list[logging.LogRecord] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler = Collect(logging.ERROR)
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield found
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)


def ahead_of(bench: Bench, dialogue: Dialogue) -> list[Dialogue]:
    """The same request for the other bootstrap rows, which DSPy asks one by one.

    Not for a row that is a demonstration itself: DSPy asks it without that demonstration, unlike every other row.
    """
    *before, last = dialogue
    if sum(turn["role"] == "assistant" for turn in before) < DEMONSTRATIONS:
        return []
    rows = bench.task.train[:BOOTSTRAP_ROWS]
    asked = [row.question for row in rows if f"\n{row.question}\n" in last["content"]]
    return [
        [*before, {**last, "content": last["content"].replace(asked[0], row.question)}]
        for row in rows
        if asked and row.question != asked[0]
    ]
