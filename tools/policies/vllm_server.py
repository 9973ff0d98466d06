"""One vLLM server over HTTP: token ids in, token ids out, adapters by content hash.

Every failure that was met with vLLM 0.32 is one of three: `ServerDownError`, after which another server is asked,
`UnknownModelError` of one that was restarted, or a ModelError that says in one sentence what to change.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from nslora.tools.errors import ModelError, first_line
from nslora.tools.policy import Sampling
from nslora.tools.training.adapters import AdapterStore

PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # between the tries of one request
LOOK_TIMEOUT_S = 30.0  # of requests that find out whether a server is there
MOST_LOADED = 8  # adapters of this run on a server; the one that was loaded first makes room
RUNTIME_LORA = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
# What vLLM answers to an adapter that it will never take, and what to do.
REFUSED = (
    ("max_lora_rank", "start it with a larger --max-lora-rank"),
    ("DoRA", "set lora.use_dora to false"),
    ("No adapter found", "put the run's folder on a disk that the server shares, under the same path"),
    ("No such file", "put the run's folder on a disk that the server shares, under the same path"),
    ("target_modules", "start it with the run's modules in --lora-target-modules"),
)


class ServerDownError(Exception):
    """A server cannot be reached, or fails at every try."""


class UnknownModelError(Exception):
    """A server does not know an adapter, as after a restart."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server tells of itself: name and place of the base, context, version of vLLM."""

    model: str
    root: str
    context_tokens: int
    version: str


class VllmServer:
    """A client of one server, for many threads.

    Args:
        url: Address, without /v1.
        client: An httpx.Client.
        adapters: The adapter store, on a disk that the server shares.
        pauses_s: Between the tries of one request.
    """

    def __init__(self, url: str, client: Any, adapters: AdapterStore, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self.url, self.client, self.adapters, self.pauses_s = url, client, adapters, pauses_s
        self.timeout_s: float | None = None  # None: the client's
        self.model = ""
        self.loaded: list[str] = []  # the first one first
        self.restarts = 0  # that were noticed
        self.loading = threading.Lock()

    def facts(self) -> ServerFacts:
        """Ask for the base, its context and the version. Raises ServerDownError, or ModelError without LoRA."""
        with self._in_form("names no model with its context"):
            cards = self._json("GET", "/v1/models")["data"]
            base: dict[str, Any] = next((card for card in cards if not card.get("parent")), {})
            name, root, context = base["id"], str(base.get("root")), int(base["max_model_len"])
        self.model = name
        self.restarts += 1
        self.loaded.clear()
        version = self._json("GET", "/version").get("version", "unknown")
        return ServerFacts(name, root, context, str(version))

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Try each request once, and not for long, as long as the block lasts."""
        before = self.pauses_s, self.timeout_s
        self.pauses_s, self.timeout_s = (), LOOK_TIMEOUT_S
        try:
            yield
        finally:
            self.pauses_s, self.timeout_s = before

    def reply(
        self,
        ids: Sequence[int],
        adapter: str | None,
        max_new_tokens: int,
        stops: Sequence[int],
        penalty: float,
        sampling: Sampling | None = None,
    ) -> list[int]:
        """Return the ids of a reply, with the stop token that ended it.

        Args:
            ids: Token ids of the prompt.
            adapter: Hash of a loaded adapter; None for the base.
            max_new_tokens: Length limit.
            stops: Token ids that end a reply.
            penalty: The model's repetition penalty.
            sampling: Draws the reply; None for the greedy one.
        """
        drawn = {} if sampling is None else {"temperature": sampling.temperature, "seed": sampling.number}
        wanted = {"max_tokens": max_new_tokens, "stop_token_ids": list(stops), "repetition_penalty": penalty, **drawn}
        found: list[int] = self._completion(ids, adapter, wanted)["token_ids"]
        if len(found) < max_new_tokens and not (found and found[-1] in stops):
            raise ModelError(
                f"{self.url} ended a reply after {len(found)} of {max_new_tokens} tokens without an end token: its "
                "--max-model-len is smaller than it says; restart it with the model's own."
            )
        return found

    def logprobs(self, ids: Sequence[int], adapter: str | None) -> list[float]:
        """Return the log-probability of each token after the first, (len(ids) - 1) floats, in nats."""
        choice = self._completion(ids, adapter, {"max_tokens": 1, "prompt_logprobs": 0})
        with self._in_form("returns no log-probabilities of prompts"):
            told = zip(choice["prompt_logprobs"], ids, strict=True)
            found = [float(each[str(token)]["logprob"]) for each, token in list(told)[1:]]
        if not all(map(math.isfinite, found)):
            raise ModelError(f"{self.url} returns log-probabilities that are no numbers: look into its log.")
        return found

    def load(self, adapter: str, name: str = "") -> bool:
        """Load an adapter, and return whether it was not loaded yet. Raises ModelError if it is not taken.

        Args:
            adapter: Its hash.
            name: Of the adapter on the server, its hash by default.
        """
        name = name or adapter
        if name in self.loaded:
            return False
        while len(self.loaded) >= MOST_LOADED:
            self.unload(self.loaded[0])
        body = {"lora_name": name, "lora_path": str(self.adapters.path(adapter).resolve())}
        status, said = self._tried("POST", "/v1/load_lora_adapter", body, wanted=(200, 400, 404, 500))
        if status != 200 and "already been loaded" not in said:  # that is as good, since names are hashes
            if status == 500 and "Engine" in said:  # not about this adapter
                raise ServerDownError(f"{self.url} (status 500: {said})")
            if status == 404 and "No adapter" not in said:
                raise ModelError(f"{self.url} loads no adapters: {RUNTIME_LORA}.")
            todo = next((do for text, do in REFUSED if text in said), "look into its log")
            raise ModelError(f"{self.url} does not load the adapter {adapter} ({said}): {todo}.")
        self.loaded.append(name)
        return True

    def unload(self, adapter: str) -> None:
        """Unload an adapter; one that the server does not know is no error."""
        self.forget(adapter)
        self._tried("POST", "/v1/unload_lora_adapter", {"lora_name": adapter}, wanted=(200, 400, 404))

    def forget(self, adapter: str) -> None:
        """Take an adapter for not loaded."""
        with suppress(ValueError):
            self.loaded.remove(adapter)

    def _completion(self, ids: Sequence[int], adapter: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        """Ask for one completion of token ids."""
        body = {
            "model": adapter or self.model,
            "prompt": list(ids),
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "skip_special_tokens": False,
            "return_token_ids": True,
            **wanted,
        }
        with self._in_form("does not answer in the token ids of the request"):
            choice: dict[str, Any] = self._json("POST", "/v1/completions", body)["choices"][0]
            if choice["prompt_token_ids"] != list(ids):
                raise ValueError
            return {**choice, "token_ids": [int(i) for i in choice["token_ids"]]}

    @contextmanager
    def _in_form(self, otherwise: str) -> Iterator[None]:
        """Raise ModelError if an answer is not in vLLM's form."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"{self.url} {otherwise}: it must be vLLM 0.11 or later.") from error

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer with status 200. Raises UnknownModelError at 404 and ModelError at another 4xx."""
        status, said = self._tried(method, path, body, wanted=(200, 400, 401, 403, 404, 422))
        if status == 200:
            return said
        if status == 404 and body:
            raise UnknownModelError(said)
        raise ModelError(
            f"{self.url}{path} answers with status {status} ({said}): correct engine.replies or the server."
        )

    def _tried(self, method: str, path: str, body: Any, *, wanted: Sequence[int]) -> tuple[int, Any]:
        """Send a request until its status is wanted; return the status, and the answer or the error's message.

        Raises:
            ServerDownError: If no try succeeds.
        """
        import httpx

        why = ""
        for pause in (*self.pauses_s, None):
            try:
                options = {} if self.timeout_s is None else {"timeout": self.timeout_s}
                answer = self.client.request(method, f"{self.url}{path}", json=body, **options)
                if answer.status_code == 200:
                    return 200, answer.text if path.endswith("_lora_adapter") else dict(answer.json())
                if answer.status_code in wanted:
                    return answer.status_code, _message(answer)
                why = f"status {answer.status_code}: {_message(answer)}"
            except httpx.TimeoutException as error:  # each further try would take as long
                raise ServerDownError(f"{self.url} ({type(error).__name__}: {first_line(error)})") from error
            except (httpx.HTTPError, TypeError, ValueError) as error:  # no connection, half an answer
                why = f"{type(error).__name__}: {first_line(error)}"
            if pause is not None:
                time.sleep(pause)
        raise ServerDownError(f"{self.url} ({why})")


def _message(answer: Any) -> str:
    """The message of an error in OpenAI's format, or the beginning of what came."""
    try:
        found = answer.json()
        error = found.get("error", found)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError):
        return str(answer.text)[:300]
