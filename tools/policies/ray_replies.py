"""Replies and losses from actors of a Ray cluster, for clusters without vLLM.

Each actor is a local policy: one for each GPU, or one for each node. The model's files and the adapters go through
Ray's object store, once to each node. An actor that dies is started again, also on another node, and its rows are asked
again; one that dies each time is left out and named.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from nslora.tools.errors import ModelError, StoppedError, UnfinishedError, first_line
from nslora.tools.files import publish_folder
from nslora.tools.inference.weights import CHANGE_REPLIES, Notify, cache_folder, fingerprint
from nslora.tools.policies.facts import ModelFacts
from nslora.tools.policies.local import GENERATION_BATCH, LocalPolicy
from nslora.tools.policies.ray_cluster import connected, on_ray
from nslora.tools.policies.settings import DeviceSettings, EngineSettings
from nslora.tools.policy import Generated, OnProgress, no_progress
from nslora.tools.schema import Dialogue
from nslora.tools.training.adapters import CONFIG, WEIGHTS, AdapterStore

RESTARTS = 3  # of an actor, and tries of its rows
KEPT = 8  # adapters in the object store
Files = Mapping[str, Any]  # references to the bytes of files in the object store, by their names


class Replier:
    """An actor: a local policy on a node.

    Args:
        name: Hash of the model's files.
        files: Those files, of which a node takes what it does not have.
        device: Where and how to compute.
        thinking: Whether replies begin with thinking.
    """

    def __init__(self, name: str, files: Files, device: DeviceSettings, thinking: Any) -> None:
        folder = cache_folder() / "models" / f"ray-{name}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of the actors of a node, one writes
            if not folder.is_dir():
                _write(files, folder)
        if (found := fingerprint(str(folder), None)) != name:
            raise ModelError(f"The model in {folder} is damaged (hash {found}, wanted {name}): remove that folder.")
        self._scratch = tempfile.TemporaryDirectory(prefix="nslora-adapters-")
        adapters = Path(self._scratch.name) / "adapters"
        self.policy = LocalPolicy.load(str(folder), adapters=adapters, device=device, thinking=thinking)

    def told(self) -> dict[str, Any]:
        """Return where and how it computes."""
        return {name: self.policy.describe()[name] for name in ("device", "dtype", "threads")}

    def generate(self, dialogues: Sequence[Dialogue], adapter: str | None, files: Files, most: int) -> Generated:
        """Reply to dialogues under an adapter."""
        self._take(adapter, files)
        return self.policy.generate(dialogues, adapter=adapter, max_new_tokens=most)

    def losses(self, pairs: Sequence[tuple[Dialogue, str]], adapter: str | None, files: Files) -> list[float]:
        """Return the losses of references after their dialogues."""
        self._take(adapter, files)
        return self.policy.reference_losses(*zip(*pairs, strict=True), adapter=adapter)

    def _take(self, adapter: str | None, files: Files) -> None:
        """Take an adapter, unless it is there."""
        store = self.policy.adapters
        if adapter and not (store.folder / adapter).is_dir():
            _write(files, store.folder / adapter)
            store.path(adapter)  # compares its hash


class RayReplies:
    """Generates and scores on the actors of a cluster. `connect` comes first.

    Args:
        engine: The cluster.
        facts: The model's facts.
        adapters: The adapter store of this process.
        device: Where and how the actors compute.
        notify: Called with a line for each actor that is left out.
    """

    def __init__(
        self,
        engine: EngineSettings,
        facts: ModelFacts,
        adapters: AdapterStore,
        device: DeviceSettings,
        notify: Notify = lambda _: None,
    ) -> None:
        self.engine, self.facts, self.adapters, self.device, self.notify = engine, facts, adapters, device, notify
        self.actors: list[Any] = []
        self.told: dict[str, Any] = {}
        self._model: Files = {}  # held, so that an actor can be started again
        self._adapters: dict[str, Files] = {}

    def connect(self) -> "RayReplies":
        """Connect with the cluster, and start the actors.

        Raises:
            ModelError: If the actors cannot load the model, or do not compute alike.
            StoppedError: If the cluster cannot be reached, or has no room.
        """
        self.ray = connected(str(self.engine.replies))
        folder = _folder_of(self.facts)
        names = sorted({path for pattern in (*CHANGE_REPLIES, "*.index.json") for path in folder.glob(pattern)})
        self._model = {str(path.relative_to(folder)): self._put(path) for path in names}
        model = fingerprint(str(folder), None), self._model
        actor = self.ray.remote(Replier)
        for options, threads in self._places():
            device = self.device.model_copy(update={"threads": self.device.threads or threads})
            options = {"num_cpus": 0, "max_restarts": RESTARTS, "max_task_retries": RESTARTS, **options}
            self.actors.append(actor.options(**options).remote(*model, device, self.facts.format.thinking))
        try:
            told = self.ray.get([each.told.remote() for each in self.actors], timeout=self.engine.timeout_s)
        except self.ray.exceptions.RayActorError as error:
            raise ModelError(
                f"The Ray cluster cannot load {self.facts.source.name} ({str(error).strip().splitlines()[-1]})."
            ) from error
        except self.ray.exceptions.GetTimeoutError as error:
            raise StoppedError(
                f"The Ray cluster started no {len(self.actors)} actors within {self.engine.timeout_s:g} s: free its "
                "GPUs, or raise engine.timeout_s, then resume."
            ) from error
        self.told = told[0]
        if len({each["dtype"] for each in told}) > 1:
            raise ModelError(
                f"The Ray cluster computes in {[each['dtype'] for each in told]}: set device.dtype to one."
            )
        return self

    def _places(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The options and threads of each actor: one on each GPU that training leaves, else one on each node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [each for each in self.ray.nodes() if each["Alive"] and each["Resources"].get("CPU")]
        gpus = int(sum(each["Resources"].get("GPU", 0) for each in nodes))
        if gpus and self.device.device != "cpu":
            training = self.engine.shards if on_ray(self.engine.launch) else 0
            if gpus <= training:
                raise StoppedError(
                    f"The Ray cluster has {gpus} GPUs, and engine.launch takes {training} of them: add one for replies."
                )
            yield from [({"num_gpus": 1, "scheduling_strategy": "SPREAD"}, 1)] * (gpus - training)
            return
        for node in nodes:
            near = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)  # elsewhere, if the node is gone
            yield {"scheduling_strategy": near}, int(node["Resources"]["CPU"])

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        adapter: str | None,
        max_new_tokens: int,
        on_progress: OnProgress = no_progress,
    ) -> Generated:
        """Generate greedy replies, in order.

        Raises:
            TooLongError: If a dialogue with its reply does not fit the context.
            ModelError: If a dialogue runs out of memory.
            UnfinishedError: If no actor is left; it holds the replies that came.
        """
        files = self._shared(adapter)
        lengths = [len(row) for row in self.facts.prompts(dialogues, max_new_tokens)]
        lots = self._lots(lengths)
        came: dict[int, Generated] = {}
        try:
            self._all(
                [[dialogues[i] for i in lot] for lot in lots],
                lambda actor, lot: actor.generate.remote(lot, adapter, files, max_new_tokens),
                came,
                on_progress,
            )
        except StoppedError as error:
            raise UnfinishedError(str(error), *_in_order(lots, came)) from error
        return _in_order(lots, came)[1]

    def reference_losses(
        self, dialogues: Sequence[Dialogue], references: Sequence[str], *, adapter: str | None
    ) -> list[float]:
        """Return the mean negative log-likelihood of each reference with its end of turn, nats per token.

        Raises:
            UnfinishedError: If no actor is left; it holds the losses that came.
        """
        files, pairs = self._shared(adapter), list(zip(dialogues, references, strict=True))
        lots = self._lots([len(prompt) + len(said) for prompt, said in self.facts.pairs(dialogues, references)])
        came: dict[int, list[float]] = {}
        stopped: StoppedError | None = None
        try:
            self._all(
                [[pairs[i] for i in lot] for lot in lots],
                lambda actor, lot: actor.losses.remote(lot, adapter, files),
                came,
                no_progress,
            )
        except StoppedError as error:
            stopped = error
        losses = {i: loss for number, found in came.items() for i, loss in zip(lots[number], found, strict=True)}
        in_order = [losses[i] for i in sorted(losses)]
        if stopped is not None:
            raise UnfinishedError(str(stopped), sorted(losses), in_order) from stopped
        return in_order

    def _lots(self, lengths: Sequence[int]) -> list[list[int]]:
        """The rows' numbers in lots of at most one batch, like with like, the longest first."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        most = self.device.batch_size or GENERATION_BATCH.get(self.told["device"], 32)
        size = max(1, min(most, -(-len(order) // len(self.actors))))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _all(
        self,
        lots: Sequence[Sequence[Any]],
        ask: Callable[[Any, Sequence[Any]], Any],
        came: dict[int, Any],
        on_progress: OnProgress,
    ) -> None:
        """Ask about all lots; `came` takes the answers by the number of the lot."""
        waiting, idle, asked = list(range(len(lots))), list(self.actors), dict[Any, tuple[Any, int]]()
        while waiting or asked:
            while waiting and idle:
                actor, number = idle.pop(0), waiting.pop(0)
                asked[ask(actor, lots[number])] = actor, number
            if not asked:
                raise StoppedError(
                    "No actor on the Ray cluster is left: look into its logs (ray logs), then resume. Every reply that "
                    "came is kept."
                )
            for answer in self.ray.wait(list(asked))[0]:
                actor, number = asked.pop(answer)
                try:
                    came[number] = self.ray.get(answer)
                except self.ray.exceptions.RayActorError as error:  # at every try
                    self.actors.remove(actor)
                    waiting.append(number)
                    self.notify(f"note     left out: an actor on Ray ({first_line(error)})")
                    continue
                idle.append(actor)
                on_progress(sum(len(lots[i]) for i in came), sum(map(len, lots)))

    def _shared(self, adapter: str | None) -> Files:
        """The files of an adapter in the object store."""
        if adapter is None:
            return {}
        if adapter not in self._adapters:
            while len(self._adapters) >= KEPT:
                del self._adapters[next(iter(self._adapters))]
            folder = self.adapters.path(adapter)
            self._adapters[adapter] = {name: self._put(folder / name) for name in (CONFIG, WEIGHTS)}
        return self._adapters[adapter]

    def _put(self, path: Path) -> Any:
        """Put the bytes of a file into the object store."""
        import numpy as np

        return self.ray.put(np.fromfile(path, np.uint8))


def _write(files: Files, folder: Path) -> None:
    """Write a folder at once from the object store."""
    import ray

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".ray-", ignore_cleanup_errors=True) as scratch:
        partial = Path(scratch) / "files"
        for name, reference in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            ray.get(reference).tofile(partial / name)
        publish_folder(partial, folder)


def _folder_of(facts: ModelFacts) -> Path:
    """The folder with the model's files, which may come from the hub."""
    folder = Path(facts.source.location)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(facts.source.location, allow_patterns=[*CHANGE_REPLIES, "*.index.json"]))


def _in_order(lots: Sequence[Sequence[int]], came: Mapping[int, Generated]) -> tuple[list[int], Generated]:
    """The rows whose replies came, in order, and these replies."""
    replies, truncated = dict[int, str](), set[int]()
    for number, found in came.items():
        replies.update(zip(lots[number], found.replies, strict=True))
        truncated |= {lots[number][i] for i in found.truncated}
    rows = sorted(replies)
    cut = frozenset(at for at, row in enumerate(rows) if row in truncated)
    return rows, Generated(tuple(replies[row] for row in rows), sum(each.tokens for each in came.values()), cut)
