"""How fast training and generation are, against the obvious alternatives, in one run.

    python tests/benchmarks/bench_speed.py [--device cpu] [--model NAME] [--shape 1b|7b] [--repeats 3]

Each figure is a ratio of whole wall times, paired: the two sides alternate, and the median ratio is reported.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from form import Figure, figure, publish

from nslora.tools.local_policy import LocalPolicy, prepare_environment
from nslora.tools.policy import Burst, TrainingRow
from nslora.tools.prompt import Demonstration, Prompt
from nslora.tools.settings import DeviceSettings, LoraSettings
from nslora.tools.task import Example, load_task

ROWS, EPOCHS, QUESTIONS, REPLY_TOKENS = 48, 8, 96, 24
SHAPES = {"1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8},
          "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 32}}


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of `work`, the device's queue included."""
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, list[float]]:
    """Median of theirs / ours over alternating repeats, and all of them."""
    ratios = []
    for _ in range(repeats):
        mine = timed(ours)
        ratios.append(timed(theirs) / mine)
    return statistics.median(ratios), ratios


def load(arguments: argparse.Namespace, folder: Path, **lora: Any) -> LocalPolicy:
    """The policy that is timed: a named model, or a randomly initialised one of a named shape."""
    device = DeviceSettings(device=arguments.device)
    settings = LoraSettings(early_stop_patience=None, **lora)
    if arguments.shape is None:
        return LocalPolicy.load(arguments.model, adapters=folder / "adapters", lora=settings, device=device)
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from nslora.tools.adapters import AdapterStore
    from nslora.tools.models import ModelSource
    from nslora.tools.tiny_model import byte_tokenizer

    tokenizer = byte_tokenizer(chat_template=True)
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(
            vocab_size=32000, max_position_embeddings=4096, **SHAPES[arguments.shape]), dtype=torch.bfloat16)
    return LocalPolicy(model, tokenizer, source=ModelSource(f"random-{arguments.shape}", f"random-{arguments.shape}"),
                       adapters=AdapterStore(folder / "adapters"), lora=settings, device=device)


def styled(rows: Sequence[Example], prompt: Prompt) -> tuple[TrainingRow, ...]:
    return tuple(TrainingRow(tuple(prompt.messages(row.question)), f'{{"answer": "{row.reference}"}}', row.id, "remade")
                 for row in rows)


def hand_written(policy: LocalPolicy, burst: Burst) -> None:
    """The loop that one would write by hand with the same two ideas: cached trunk, logits at supervised positions."""
    import torch
    from transformers import get_scheduler

    from nslora.tools.burst_plan import PaddedLayout, Plan, TokenRow
    from nslora.tools.frozen_trunk import compact_head, lowest_trained_block, without_trunk
    from nslora.tools.training import cached_states

    rows = tuple(TokenRow(tuple(policy.format.prompt_ids(row.dialogue)),
                          tuple(policy.format.completion_ids(row.completion))) for row in burst.rows)
    plan = Plan(rows, burst.epochs, burst.seed, policy.format.pad_id, policy.lora)
    model, base, layout = policy._new_adapter(burst), policy.base, PaddedLayout(plan)
    cut = lowest_trained_block(base, [n for n, p in model.named_parameters() if p.requires_grad])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.settings.learning_rate, weight_decay=0.0)
    warmup = round(plan.settings.warmup_share * plan.steps)
    scheduler = get_scheduler(plan.settings.schedule, optimizer, warmup, plan.steps)
    states = cached_states(base, layout, cut or 0)
    model.train()
    with compact_head(base) as positions, without_trunk(base, cut or 0):
        for start in range(0, len(plan.order), plan.settings.batch_size):
            numbers = plan.order[start:start + plan.settings.batch_size]
            batch = {key: value.to(base.device) for key, value in layout.batch(numbers).items()}
            targets = positions.set(batch["labels"])
            hidden = base.get_decoder()(inputs_embeds=layout.join([states[n] for n in numbers]).to(base.device),
                                        attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
            logits = base.get_output_embeddings()(hidden).float()
            torch.nn.functional.cross_entropy(logits[0], targets[0]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, plan.settings.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    policy._forget("burst")


def training_figures(arguments: argparse.Namespace, folder: Path, rows: Sequence[Example], prompt: Prompt,
                     on_cpu: bool) -> list[Figure]:
    """A burst with both exact short cuts: against plain SFTTrainer, a hand-written loop, and with a shared prefix."""
    policy = load(arguments, folder, share_prefix=False)
    burst = Burst(styled(rows, prompt), EPOCHS, seed=1)

    def run(**lora: Any) -> Callable[[], Any]:
        def work() -> None:
            policy.lora = policy.lora.model_copy(update={"fast": True, "share_prefix": False, **lora})
            found.append(policy.train(burst).adapter)
        return work

    found: list[str] = []
    policy.train(Burst(burst.rows[:8], 1, seed=1))      # imports and first-use costs belong to no side
    plain, ratios = paired(run(), run(fast=False), arguments.repeats)
    same = float(len(set(found)) == 1)
    hand, hand_ratios = paired(lambda: hand_written(policy, burst), run(), arguments.repeats)
    shared, shared_ratios = paired(run(share_prefix=True), run(), arguments.repeats)
    return [figure("burst: plain SFTTrainer / short cuts", plain, "x", at_least=2.5 if on_cpu else None),
            figure("burst: same adapter with and without", same, "1 = to the bit", at_least=1),
            figure("burst: short cuts through SFTTrainer / by hand", hand, "x", at_most=1.15 if on_cpu else None),
            figure("burst: short cuts / with the shared prefix on top", shared, "x"),
            figure("burst: spread of the first ratio", max(ratios) - min(ratios), "x"),
            figure("burst: spread of the others", max(max(r) - min(r) for r in (hand_ratios, shared_ratios)), "x")]


def evaluation_figures(arguments: argparse.Namespace, folder: Path, questions: Sequence[str],
                       prompt: Prompt) -> list[Figure]:
    """Replies to many questions behind the same demonstrations, against plain generate in batches and one by one."""
    policy = load(arguments, folder)
    dialogues = [prompt.messages(question) for question in questions]
    ours: list[Any] = []

    def prefix() -> None:
        ours.append(policy.generate(dialogues, adapter=None, max_new_tokens=REPLY_TOKENS).replies)

    def plain(batch: int) -> Callable[[], None]:
        return lambda: theirs.append(plain_generate(policy, dialogues, batch))

    theirs: list[Any] = []
    batched, _ = paired(prefix, plain(16), arguments.repeats)
    single, _ = paired(prefix, plain(1), 1)
    same = sum(a == b for a, b in zip(ours[0], theirs[-1], strict=True)) / len(dialogues)
    return [figure("evaluation: plain generate at batch 16 / prefix cache", batched, "x", at_least=1.5),
            figure("evaluation: plain generate one by one / prefix cache", single, "x", at_least=2.5),
            figure("evaluation: replies identical to one by one", same, "share", at_least=1.0)]


def plain_generate(policy: LocalPolicy, dialogues: Sequence[Any], batch: int) -> tuple[str, ...]:
    """transformers' generate with left padding, as its documentation shows it."""
    import torch

    rows, replies = [policy.format.prompt_ids(dialogue) for dialogue in dialogues], []
    for start in range(0, len(rows), batch):
        part = rows[start:start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[policy.format.pad_id] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        with torch.inference_mode():
            output = policy.base.generate(ids.to(policy.base.device), attention_mask=mask.to(policy.base.device),
                                          max_new_tokens=REPLY_TOKENS, do_sample=False,
                                          eos_token_id=list(policy.format.stop_ids), pad_token_id=policy.format.pad_id)
        replies += [policy.format.decode(row) for row in output[:, width:].tolist()]
    return tuple(replies)


def floor_figure(arguments: argparse.Namespace, folder: Path, rows: Sequence[Example], prompt: Prompt) -> Figure:
    """A burst's wall time over that of its matrix products alone, of the same shapes, measured in the same run."""
    import torch

    policy = load(arguments, folder, share_prefix=False)
    burst = Burst(styled(rows, prompt), EPOCHS, seed=1)
    policy.train(Burst(burst.rows[:8], 1, seed=1))
    wall = timed(lambda: policy.train(burst))
    config = policy.base.config
    width = max(policy.count_tokens(row.dialogue) + len(policy.format.completion_ids(row.completion))
                for row in burst.rows)
    tokens = policy.lora.batch_size * width
    blocks = len(policy._targets["layers_to_transform"])
    weights = [module.weight for name, module in policy.base.get_decoder().layers[-1].named_modules()
               if isinstance(module, torch.nn.Linear) and "lora" not in name]
    inputs = [torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device) for weight in weights]

    def products() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            (x @ weight.detach().T) @ weight.detach()       # forward, and the gradient of the input

    products()
    per_step = timed(products) * blocks
    steps = len(burst.rows) * EPOCHS // policy.lora.batch_size
    trunk = timed(products) / 2 * (config.num_hidden_layers - blocks) * (len(burst.rows) / policy.lora.batch_size)
    return figure("burst: wall / matrix products of the same shapes", wall / (per_step * steps + trunk), "x")


def memory_figure(arguments: argparse.Namespace, folder: Path, rows: Sequence[Example], prompt: Prompt) -> Figure:
    """Resident memory with five adapters loaded, over that with the base alone after a first batch."""
    import psutil

    policy = load(arguments, folder)
    dialogues = [prompt.messages(row.question) for row in rows[:8]]
    names = [policy.train(Burst(styled(rows[:8], prompt), 1, seed=seed)).adapter for seed in range(5)]
    policy.generate(dialogues, adapter=None, max_new_tokens=2)
    before = psutil.Process().memory_info().rss
    for name in names:
        policy.generate(dialogues, adapter=name, max_new_tokens=2)
    grown = psutil.Process().memory_info().rss - before
    base = sum(p.numel() * p.element_size() for n, p in policy.base.named_parameters() if "lora_" not in n)
    return figure("memory: five adapters beside the base", 1 + grown / base, "x base", at_most=1.5)


def growth_figures(arguments: argparse.Namespace, folder: Path, rows: Sequence[Example],
                   prompt: Prompt) -> list[Figure]:
    """Time of an epoch as the rows grow: seconds per row at x4 and x16 over that at x1."""
    policy = load(arguments, folder)
    few = styled(rows[:12], prompt)
    policy.train(Burst(few, 2, seed=1))
    seconds = {times: timed(lambda times=times: policy.train(Burst(few * times, 2, seed=1))) / times  # type: ignore[misc]
               for times in (1, 4, 16)}
    return [figure(f"growth: seconds a row, rows x{times} over x1", seconds[times] / seconds[1], "x", at_most=1.1)
            for times in (4, 16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    prepare_environment()
    task = load_task("handbook")
    prompt = Prompt("Reply with a JSON object with the key answer.", demonstrations=tuple(
        Demonstration(row.question, f'{{"answer": "{row.reference}"}}') for row in task.train[:2]))
    rows, on_cpu = task.train[:ROWS], arguments.device == "cpu"
    questions = [row.question for row in (*task.train, *task.validation, *task.test)][:QUESTIONS]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        figures = [*training_figures(arguments, folder, rows, prompt, on_cpu),
                   *evaluation_figures(arguments, folder, questions, prompt),
                   floor_figure(arguments, folder, rows, prompt), memory_figure(arguments, folder, rows, prompt),
                   *growth_figures(arguments, folder, rows, prompt)]
    publish("speed", figures, device=arguments.device, model=arguments.shape or arguments.model)


if __name__ == "__main__":
    main()
