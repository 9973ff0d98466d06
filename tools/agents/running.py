"""Trajectories of a task's agent: from the record if they are known, else run, and kept one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nslora.tools.agents.chat import PolicyChat
from nslora.tools.agents.flight import Start, fly
from nslora.tools.agents.mending import Mend
from nslora.tools.agents.once import Record
from nslora.tools.errors import NsloraError, TaskError, first_line
from nslora.tools.evaluation.rollouts import Replies, known_or_new
from nslora.tools.files import sha256_of_json
from nslora.tools.inference.reply_cache import ReplyCache, reply_key, token_counts
from nslora.tools.policy import OnProgress, Policy, Sampling, no_progress
from nslora.tools.prompt import Prompt
from nslora.tools.schema import Example, Message, answered
from nslora.tools.tasks.agent import Agent, Prompts
from nslora.tools.tasks.task import Task
from nslora.tools.trajectory import ModelCall, Trajectory

REVISION = 1  # raise it if a change alters what an agent is given, or what a record holds


@dataclass(frozen=True)
class Flown:
    """Trajectories of some rows, and their cost.

    Attributes:
        trajectories: One a row.
        tokens: Tokens generated for them now, or by this payer before a kill.
        cached: Rows whose trajectory was known.
        forward_tokens: Prompts and replies of all their calls, cached or not.
    """

    trajectories: tuple[Trajectory, ...]
    tokens: int
    cached: int
    forward_tokens: int

    @property
    def replies(self) -> Replies:
        """The final answers, as the replies of an evaluation."""
        texts = tuple(each.answer for each in self.trajectories)
        truncated = frozenset(i for i, each in enumerate(self.trajectories) if each.truncated)
        return Replies(texts, self.tokens, self.cached, self.forward_tokens, truncated)


def run_agent(
    policy: Policy,
    cache: ReplyCache | None,
    task: Task,
    prompt: Prompt,
    rows: Sequence[Example],
    *,
    adapter: str | None,
    sampling: Sampling | None = None,
    mends: Mapping[str, Mend] | None = None,
    on_progress: OnProgress = no_progress,
) -> Flown:
    """Run the task's agent on rows. A known trajectory calls neither the policy nor tools.

    Args:
        policy: Replies.
        cache: Known replies and trajectories; None keeps nothing.
        task: With an agent.
        prompt: In force.
        rows: What the agent is asked.
        adapter: Hash of the adapter; None for the base.
        sampling: Draws the replies; None for greedy ones.
        mends: A call that is given, by id of the row.
        on_progress: Called with (trajectories done, all that were missing) after each.

    Raises:
        TaskError: If the agent cannot be made.
    """
    agent = task.agent
    if agent is None:
        raise TaskError(f"The task {task.name} has no agent: name one under `agent`.")
    starts = [_start(policy, task, agent, prompt, row, adapter, sampling, (mends or {}).get(row.id)) for row in rows]
    by_key = {start.key: start for start in starts}
    asking = Asking(policy, cache, task.max_new_tokens, adapter, sampling, sha256_of_json(sorted(by_key)))
    account = f"{asking.request}-ended"
    asking.tokens, ended_before = (cache.paid(asking.request)[0], cache.paid(account)[1]) if cache else (0, 0)
    known = cache.find(list(by_key)) if cache else {}
    missing = [start for key, start in by_key.items() if key not in known]
    if missing:
        try_agent(task, prompt)

    def on_ended(number: int, trajectory: Trajectory) -> None:
        record = {missing[number].key: trajectory.to_json()}
        known.update(record)
        if cache:
            cache.add(record, account)
        on_progress(len(known) - len(by_key) + len(missing), len(missing))

    fly(
        agent,
        Prompts(prompt),
        missing,
        asking.answer,
        on_ended,
        record_of=lambda start: Record(cache, start.key),
        batch_size=getattr(policy, "batch_size", agent.spec.in_flight),
    )
    trajectories = tuple(Trajectory.from_json(known[start.key]) for start in starts)
    forward = sum(call.forward_tokens for each in trajectories for call in each.calls)
    return Flown(trajectories, asking.tokens, len(by_key) - len(missing) - ended_before, forward)


@dataclass
class Asking:
    """Asks the policy for batches of calls. tokens: generated so far; request: names the payer's account of them."""

    policy: Policy
    cache: ReplyCache | None
    max_new_tokens: int
    adapter: str | None
    sampling: Sampling | None
    request: str
    tokens: int = 0

    def answer(self, asked: Sequence[tuple[list[Message], str | None]]) -> list[ModelCall | str]:
        """Answer each dialogue, or say why it cannot be sent; a reply that is given is taken."""
        dialogues = [dialogue for dialogue, _ in asked]
        counts = token_counts(self.policy, self.cache, dialogues)
        room = self.policy.context_tokens - self.max_new_tokens
        open_ones = [i for i, (_, given) in enumerate(asked) if given is None and counts[i] <= room]
        found = known_or_new(
            self.policy,
            self.cache,
            [dialogues[i] for i in open_ones],
            adapter=self.adapter,
            max_new_tokens=self.max_new_tokens,
            request=self.request,
            sampling=self.sampling,
        )
        self.tokens += found.tokens
        texts = {i: given for i, (_, given) in enumerate(asked) if given is not None}
        texts |= dict(zip(open_ones, found.texts, strict=True))
        truncated = {open_ones[place] for place in found.truncated}
        whole = token_counts(self.policy, self.cache, [answered(dialogues[i], texts[i]) for i in texts])
        forward = dict(zip(texts, whole, strict=True))
        return [
            ModelCall(
                tuple(dialogues[i]),
                texts[i],
                truncated=i in truncated,
                prompt_tokens=counts[i],
                forward_tokens=max(forward[i], counts[i]),
            )
            if i in texts
            else f"sent {counts[i]} tokens, and the context leaves {room} beside the reply: shorten its prompts or "
            "the results of its tools"
            for i in range(len(asked))
        ]


def _start(
    policy: Policy,
    task: Task,
    agent: Agent,
    prompt: Prompt,
    row: Example,
    adapter: str | None,
    sampling: Sampling | None,
    mend: Mend | None,
) -> Start:
    """What the trajectory of a row begins with, named by all that it depends on."""
    messages = prompt.dialogue(row)
    sections = [[section.name, section.text] for section in prompt.sections]
    drawn: list[Any] = [] if sampling is None else [sampling.temperature, sampling.number]
    drawn += [] if mend is None else ["mended", mend.call, mend.reply]
    request = ["trajectory", REVISION, agent.fingerprint, sections, messages, row.question, *drawn]
    key = reply_key(policy.fingerprint, adapter, json.dumps(request), task.max_new_tokens)
    return Start(messages, row.question, key, mend)


def try_agent(task: Task, prompt: Prompt) -> Any:
    """Make the task's agent once, without a model, and return it. Raises TaskError if it cannot be made."""
    agent = task.agent
    if agent is None:
        return None

    def nobody(dialogue: list[Message], reads_tools: bool) -> ModelCall:
        raise TaskError("The agent calls the model while it is made: call it when the agent is invoked.")

    try:
        made = agent.make(PolicyChat(call=nobody, texts=Prompts(prompt)), Prompts(prompt))
    except NsloraError as error:
        raise TaskError(f"The agent of {task.name} cannot be made: {error}") from error
    except Exception as error:
        raise TaskError(
            f"The agent of {task.name} cannot be made ({type(error).__name__}: {first_line(error)}): mend make_agent."
        ) from error
    if not hasattr(made, "invoke"):
        raise TaskError(
            f"The agent of {task.name} is a {type(made).__name__}: make_agent must return a Runnable, such as a "
            "compiled LangGraph graph."
        )
    return made


def with_trajectories(rows: Sequence[Example], trajectories: Sequence[Trajectory]) -> list[Example]:
    """The rows, each with what the agent did for it, as the reward sees them."""
    return [replace(row, trajectory=each) for row, each in zip(rows, trajectories, strict=True)]
