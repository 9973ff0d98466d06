"""Peers that need no server: the untouched model, plain TRL, and TextGrad's own recipe.

Each recipe takes a Bench, spends at most its cap, and returns replies to the test questions and a description of what
it leaves to the user.
"""

import dataclasses
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from peers_meter import BatchedChat, Batcher, Meter

from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.editor.textual_gradients import load_textgrad
from nslora.tools.evaluation.rollouts import grade
from nslora.tools.inference.flops import TERA, FlopRates, rates_of
from nslora.tools.inference.reply_cache import token_counts
from nslora.tools.inference.weights import resolve_model
from nslora.tools.policies.local import LocalPolicy
from nslora.tools.schema import Dialogue, Example, answered
from nslora.tools.tasks.task import Task

THREADS = 32  # of peers that ask in parallel, as the recipes of TextGrad and DSPy do
MESSAGE_CHARACTERS = 400
NEEDS_EDITOR = "a strong language model as the editor (the recipe names gpt-4o); none runs on a machine without network"


@dataclass
class Bench:
    """One cell: a task, a seed, the policy, and the meter of the recipe's compute."""

    task: Task
    seed: int
    model: str
    policy: LocalPolicy
    meter: Meter
    batcher: Batcher
    folder: Path


@dataclass
class Outcome:
    """replies: to the test questions, in order. breaks: place and message of each error of the recipe.

    needs: a requirement of the recipe that the machine does not meet; "" if it ran as documented.
    """

    replies: Sequence[str]
    left_with: str
    settings: dict[str, Any]
    needs: str = ""
    breaks: list[dict[str, str]] = field(default_factory=list)


def ask_test(bench: Bench, system: str | None, adapter: str | None = None) -> Sequence[str]:
    """Replies to the test questions under the task's own prompt, or under the system prompt `system`."""
    dialogues = [
        bench.task.prompt.messages(row.question) if system is None else chat(system, row.question)
        for row in bench.task.test
    ]
    return replies_to(bench, dialogues, adapter)


def replies_to(bench: Bench, dialogues: Sequence[Dialogue], adapter: str | None) -> Sequence[str]:
    return bench.policy.generate(dialogues, adapter=adapter, max_new_tokens=bench.task.max_new_tokens).replies


def chat(system: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def clipped(error: BaseException | str) -> str:
    """An error in one line, shortened, without local paths."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    line = re.sub(r"[^\s'\"(]*site-packages/", "", " ".join(text.split()))
    return line if len(line) <= MESSAGE_CHARACTERS else line[:MESSAGE_CHARACTERS] + " ..."


def base(bench: Bench) -> Outcome:
    """The model as it is."""
    return Outcome(ask_test(bench, None), "the model as it was", {})


RECIPE_RATE = 2e-4
RATES = (RECIPE_RATE, 1e-3, 4e-3)


def trl_sft(bench: Bench) -> Outcome:
    """LoRA as TRL's page on PEFT shows it: rank 32, alpha 16, learning rate 2e-4, 2 x 8 rows a step, one epoch."""
    return sft_outcome(bench, [sft(bench, 1, RECIPE_RATE)])


def trl_sft_to_the_cap(bench: Bench) -> Outcome:
    """`trl_sft` with as many epochs as the compute allows."""
    return sft_outcome(bench, [sft(bench, epochs_within(bench, bench.meter.cap_tflop), RECIPE_RATE)])


def trl_sft_best_rate(bench: Bench) -> Outcome:
    """`trl_sft` at three learning rates, a third of the compute each; the best on validation, the lowest of ties."""
    validation = bench.task.validation
    dialogues = [bench.task.prompt.messages(row.question) for row in validation]
    longest = sum(bench.policy.count_tokens(each) + bench.task.max_new_tokens for each in dialogues)
    share = bench.meter.cap_tflop / len(RATES) - longest * bench.meter.rates.forward / TERA
    epochs, trained = epochs_within(bench, share), []
    for rate in RATES:
        each = sft(bench, epochs, rate)
        replies = replies_to(bench, dialogues, each.adapter)
        for count in token_counts(bench.policy, None, list(map(answered, dialogues, replies))):
            bench.meter.reply(count, edits=False)
        rewards = [graded.score.value for graded in grade(bench.task.reward, validation, replies)]
        trained.append(dataclasses.replace(each, validation_reward=float(np.mean(rewards))))
    return sft_outcome(bench, trained)


def epochs_within(bench: Bench, tflop: float) -> int:
    """Epochs that `tflop` allows, at least one."""
    # As TRL counts them: with the text of the chat template after the last turn.
    tokens = sum(
        len(bench.policy.tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False))
        for row in sft_rows(bench)
    )
    return max(1, int(tflop * TERA / (tokens * full_rates(bench).training)))


def full_rates(bench: Bench) -> FlopRates:
    """FLOP rates with LoRA in every block, as PEFT places it by default."""
    blocks = bench.policy.base.config.get_text_config().num_hidden_layers
    return FlopRates.of(rates_of(bench.policy.base, blocks))


def sft_rows(bench: Bench) -> list[dict[str, Any]]:
    return [
        {
            "prompt": bench.task.prompt.messages(row.question),
            "completion": [{"role": "assistant", "content": str(row.reference)}],
        }
        for row in bench.task.train
    ]


@dataclass(frozen=True)
class Trained:
    """One training: its adapter in the policy's store, the adapter's bytes, and its settings for the record."""

    adapter: str
    size_bytes: int
    settings: dict[str, Any]
    validation_reward: float | None = None


def sft_outcome(bench: Bench, trained: Sequence[Trained]) -> Outcome:
    """Answer the test questions with the best adapter on validation; a single adapter is not validated."""
    best = max(trained, key=lambda each: each.validation_reward or 0.0)
    tried = {
        str(each.settings["learning_rate"]): round(each.validation_reward, 4)
        for each in trained
        if each.validation_reward is not None
    }
    return Outcome(
        ask_test(bench, None, best.adapter),
        f"a LoRA adapter ({best.size_bytes / 1e6:.1f} MB)",
        {**best.settings, **({"validation_reward_by_rate": tried} if tried else {})},
    )


def sft(bench: Bench, epochs: int, rate: float) -> Trained:
    """Train on the references of the train split with SFTTrainer, and keep the last weights."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    folder = Path(tempfile.mkdtemp(prefix="peer-sft-"))
    settings = {
        "rank": 32,
        "alpha": 16,
        "dropout": 0.05,
        "learning_rate": rate,
        "epochs": epochs,
        "rows_a_step": 16,
        "rows": len(bench.task.train),
        "labels": "references",
    }
    config = SFTConfig(
        output_dir=str(folder),
        learning_rate=rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        seed=bench.seed,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        # The defaults are for GPUs: bf16 alone makes a step 19 times slower on this CPU. They do not change the recipe.
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    torch.manual_seed(bench.seed)  # the adapter is initialised before the trainer sets its seed
    lora = LoraConfig(r=32, lora_alpha=16, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model(bench.model, lambda _: None).location, dtype=torch.float32
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(sft_rows(bench)),
        peft_config=lora,
        processing_class=bench.policy.tokenizer,
    )
    trainer.train()
    bench.meter.rates = full_rates(bench)
    log = [each for each in trainer.state.log_history if "loss" in each]
    bench.meter.trained_tokens += int(log[-1]["num_tokens"])
    trainer.save_model(str(folder / "adapter"))
    size = sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors"))
    adapter = bench.policy.adapters.add(folder / "adapter")
    shutil.rmtree(folder, ignore_errors=True)
    return Trained(
        adapter, size, {**settings, "steps": len(log), "first_loss": log[0]["loss"], "last_loss": log[-1]["loss"]}
    )


def textgrad_rules(bench: Bench) -> Outcome:
    """TextGrad's recipe, with the embedded rule editor instead of a language model."""
    return textgrad(bench, RuleEditor(), "rules")


def textgrad_policy(bench: Bench) -> Outcome:
    """TextGrad's recipe, with the tuned model itself as the editor."""
    return textgrad(bench, BatchedChat(batcher=bench.batcher, max_tokens=256, edits=True), "the model itself")


EPOCHS, BATCH, STEPS_AN_EPOCH = 3, 3, 4  # of TextGrad's evaluation/prompt_optimization.py
START_PROMPT = "You will answer a question."
SYSTEM_ROLE = (
    "structured system prompt to a somewhat capable language model that specifies the behavior and "
    "strategies for the QA task"
)


def textgrad(bench: Bench, editor: BaseChatModel, name: str) -> Outcome:
    """TextGrad's prompt optimisation: backward through each row, a step, and a step back if validation falls.

    The loss is the reward. The reward's feedback in words is the textual gradient of the reply.
    """
    tg = load_textgrad()
    random.seed(bench.seed)
    np.random.seed(bench.seed)
    student, engine = engines(tg, bench, editor)
    prompt = tg.Variable(START_PROMPT, requires_grad=True, role_description=SYSTEM_ROLE)
    model = tg.BlackboxLLM(student, prompt)
    optimizer = tg.TextualGradientDescent(engine=engine, parameters=[prompt])
    judge = reward_loss(tg, bench.task)
    best, kept, breaks, steps = validate(tg, bench, model), START_PROMPT, [], 0
    for batch in batches(bench):
        optimizer.zero_grad()
        losses = [
            judge(
                row,
                model(tg.Variable(row.question, requires_grad=False, role_description="query to the language model")),
            )
            for row in batch
        ]
        try:
            tg.sum(losses).backward(engine=engine)
            # TextGrad keeps a set hashed by identity; this restores the order of the rows, so that runs are repeatable.
            prompt.gradients = [each for each in prompt.gradients_context if each in prompt.gradients]
            optimizer.step()
        except Exception as error:  # the recipe handles no error: its script ends here with the last prompt
            breaks.append({"where": f"step {steps + 1} of {EPOCHS * STEPS_AN_EPOCH}", "message": clipped(error)})
            break
        steps += 1
        reward = validate(tg, bench, model)
        if reward < best:
            prompt.set_value(kept)
        best, kept = max(best, reward), prompt.value
    prompt.set_value(kept)
    return Outcome(
        ask_test(bench, kept),
        f"a system prompt of {len(kept.split())} words",
        {
            "editor": name,
            "steps": steps,
            "validation_reward": round(best, 4),
            "prompt": kept,
            "rows": "feedback of the reward on train rows",
        },
        NEEDS_EDITOR,
        breaks,
    )


def batches(bench: Bench) -> Iterator[list[Example]]:
    """Shuffled train rows in batches of three, four batches per epoch, as in the recipe."""
    for _ in range(EPOCHS):
        order = np.random.permutation(len(bench.task.train))
        for step in range(STEPS_AN_EPOCH):
            rows = [bench.task.train[i] for i in order[step * BATCH : (step + 1) * BATCH]]
            if rows:
                yield rows


def engines(tg: Any, bench: Bench, editor: BaseChatModel) -> tuple[Any, Any]:
    """The policy and the editor as TextGrad engines."""
    from textgrad.engine.base import EngineLM

    class Student(EngineLM):  # type: ignore[misc]
        model_string = "policy"

        def generate(self, prompt: str, system_prompt: str | None = None, **_: Any) -> str:
            return bench.batcher.ask(chat(system_prompt or "", prompt), bench.task.max_new_tokens)[0]

        __call__ = generate

    class Editor(EngineLM):  # type: ignore[misc]
        model_string = "editor"

        def generate(self, prompt: str, system_prompt: str | None = None, **_: Any) -> str:
            if isinstance(editor, RuleEditor):
                bench.meter.call_elsewhere()
            return str(editor.invoke([SystemMessage(system_prompt or ""), HumanMessage(prompt)]).text)

        __call__ = generate

    return Student(), Editor()


def reward_loss(tg: Any, task: Task) -> Any:
    """The reward as a TextGrad function with a backward pass."""
    from textgrad.autograd.function import BackwardContext, Function

    class RewardLoss(Function):  # type: ignore[misc]
        def forward(self, row: Example, response: Any) -> Any:
            score = task.reward(row, response.value)
            value = tg.Variable(f"{score.value:.3f}", predecessors=[response], role_description="reward of the reply")
            value.set_grad_fn(
                BackwardContext(
                    self.backward, response=response, feedback=score.feedback or "The reply is right as it is."
                )
            )
            return value

        def backward(self, response: Any, feedback: str, backward_engine: Any) -> None:
            response.gradients.add(tg.Variable(feedback, role_description="feedback to the reply"))

    return RewardLoss()


def validate(tg: Any, bench: Bench, model: Any) -> float:
    """Mean reward on the validation split, from many threads, as in the recipe."""

    def value(row: Example) -> float:
        question = tg.Variable(row.question, requires_grad=False, role_description="query to the language model")
        return bench.task.reward(row, model(question).value).value

    with ThreadPoolExecutor(THREADS) as pool:
        return float(np.mean(list(pool.map(value, bench.task.validation))))
