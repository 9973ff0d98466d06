"""A cache of greedy replies, which all runs of a user share."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from nslora.tools.errors import RunError
from nslora.tools.policy import Policy
from nslora.tools.schema import Dialogue

RENDERING = 3  # raise it if a change alters how a dialogue is written or a reply is read
LOOKUP_CHUNK = 500  # keys in one SQL statement; SQLite's own limit is 999 in old builds


def reply_key(policy: str, adapter: str | None, request: str, max_new_tokens: int) -> str:
    """Return the SHA-256 of everything that a greedy reply depends on.

    Args:
        policy: Fingerprint of the base (weights and dtype).
        adapter: Hash of the adapter, None for the base alone.
        request: The text that is sent.
        max_new_tokens: Length limit of the reply.
    """
    parts = "\x1f".join((str(RENDERING), policy, adapter or "base", str(max_new_tokens), request))
    return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


class ReplyCache:
    """A SQLite file of replies by key; several processes may use it at once.

    Attributes:
        path: The file.
        payer: Id of the LangGraph task that pays for new replies. After a kill the task runs again under the same id,
            finds its replies here, and must still count their cost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.payer = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"The folder {path.parent} of the reply cache cannot be made ({error.strerror}): set NSLORA_CACHE to a "
                "folder that you may write."
            ) from error
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS paid (payer TEXT, request TEXT, tokens INTEGER, "
                "replies INTEGER, PRIMARY KEY (payer, request))"
            )

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the stored replies among `keys`."""
        found: dict[str, str] = {}
        with self._connect() as connection:
            for start in range(0, len(keys), LOOKUP_CHUNK):
                chunk = list(keys[start : start + LOOKUP_CHUNK])
                marks = ",".join("?" * len(chunk))
                rows = connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", chunk)
                found.update(rows.fetchall())
        return found

    def add(self, replies: Mapping[str, str], request: str = "", tokens: int = 0) -> None:
        """Store replies, and add their cost to the payer's account in the same transaction.

        Args:
            replies: Replies by key; a stored reply stays.
            request: Name of the payer's request.
            tokens: Tokens that were generated for these replies.
        """
        with self._connect() as connection:
            connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", list(replies.items()))
            if self.payer and request and replies:
                connection.execute(
                    "INSERT INTO paid VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "tokens = tokens + excluded.tokens, replies = replies + excluded.replies",
                    (self.payer, request, tokens, len(replies)),
                )

    def paid(self, request: str) -> tuple[int, int]:
        """Return the tokens and replies that an earlier process generated for the payer's `request`, or (0, 0)."""
        with self._connect() as connection:
            row = connection.execute(
                "SELECT tokens, replies FROM paid WHERE payer = ? AND request = ?", (self.payer, request)
            ).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """Open a connection that commits or rolls back, and closes. Raises RunError if the file cannot be used."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise RunError(
                f"The reply cache {self.path} cannot be used ({error}): {_remedy(error)}. Every finished step of a run "
                "is kept."
            ) from error


def _remedy(error: sqlite3.Error) -> str:
    """Advise what to do about an error of the cache's file."""
    said = str(error)
    if "malformed" in said or "not a database" in said:
        return "delete the file, it contains only replies that can be generated again"
    if "locked" in said or "busy" in said:
        return "wait for the other process that uses it, then resume the run"
    return "free some disk space or make the folder writable, then resume the run"


def token_counts(policy: Policy, cache: ReplyCache | None, dialogues: Sequence[Dialogue]) -> list[int]:
    """Count the tokens of each dialogue.

    They are cached beside the replies, so that a replay does not even load the tokenizer.
    """
    keys = [reply_key(policy.fingerprint, None, json.dumps(["tokens", list(each)]), 0) for each in dialogues]
    counts = cache.find(keys) if cache else {}
    unknown = {key: dialogue for key, dialogue in zip(keys, dialogues, strict=True) if key not in counts}
    new = {key: str(policy.count_tokens(dialogue)) for key, dialogue in unknown.items()}
    if cache and new:
        cache.add(new)
    counts.update(new)
    return [int(counts[key]) for key in keys]
