"""Replies that were generated once are not generated again, in this run or another."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from nslora.tools.errors import RunError

RENDERING = 3  # to be counted up when a dialogue is written, or a reply read, in another way than before
LOOKUP_CHUNK = 500  # keys in one SQL statement; SQLite's own limit is 999 in old builds


def reply_key(policy: str, adapter: str | None, request: str, max_new_tokens: int) -> str:
    """What a greedy reply depends on: the base (weights and dtype), the adapter, the text sent and its length limit."""
    parts = "\x1f".join((str(RENDERING), policy, adapter or "base", str(max_new_tokens), request))
    return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


class ReplyCache:
    """A SQLite file of replies by key; several processes may use it at once.

    payer: the task of the graph on whose account replies are generated. A task that was killed starts again from its
    top under the same name, finds its replies here, and must still count them as its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.payer = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"The folder {path.parent} of the reply cache cannot be made ({error.strerror}): set "
                "NSLORA_CACHE to a folder of yours."
            ) from error
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS paid (payer TEXT, request TEXT, tokens INTEGER, "
                "replies INTEGER, PRIMARY KEY (payer, request))"
            )

    def find(self, keys: Sequence[str]) -> dict[str, str]:
        """The replies that are known, by key."""
        found: dict[str, str] = {}
        with self._connect() as connection:
            for start in range(0, len(keys), LOOKUP_CHUNK):
                chunk = list(keys[start : start + LOOKUP_CHUNK])
                marks = ",".join("?" * len(chunk))
                rows = connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", chunk)
                found.update(rows.fetchall())
        return found

    def add(self, replies: Mapping[str, str], request: str = "", tokens: int = 0) -> None:
        """Store replies, and in the same transaction what the payer's `request` spent on them, added to what it spent
        before. A reply that is already there stays.
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
        """Tokens and replies that the payer's `request` generated before its process was killed; (0, 0) else."""
        with self._connect() as connection:
            row = connection.execute(
                "SELECT tokens, replies FROM paid WHERE payer = ? AND request = ?", (self.payer, request)
            ).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits or rolls back, and closes. Raises RunError where the file cannot be used."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise RunError(
                f"The reply cache {self.path} cannot be used ({error}): {remedy(error)}. Every finished "
                "step of a run is kept."
            ) from error


def remedy(error: sqlite3.Error) -> str:
    """What a person can do about an error of the cache's file."""
    said = str(error)
    if "malformed" in said or "not a database" in said:
        return "delete it, it holds nothing but replies that can be generated again"
    if "locked" in said or "busy" in said:
        return "another process holds it: wait for that, then go on"
    return "make room, or see that its folder can be written, then go on"
