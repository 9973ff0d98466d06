"""No file of a run holds a key."""

from collections.abc import Callable
from typing import Any

import pytest
from fakes import CANARY
from pydantic import Field

from nslora.graph.runs.run import Run
from nslora.tools.editor.redaction import SECRET_MARK, environment_secrets, publishable, scrub, secrets_of
from nslora.tools.editor.rule_editor import RuleEditor
from nslora.tools.errors import EditorCallError
from nslora.tools.workspace.workspace import Workspace, register


class KeyedEditor(RuleEditor):
    """An editor that holds a key and names it in its errors, as careless providers do."""

    api_key: str = CANARY
    headers: dict[str, str] = {"Authorization": f"Bearer {CANARY}"}  # noqa: RUF012
    fails: bool = False

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise ConnectionError(f"401 for key {CANARY} at https://me:{CANARY}@host/v1?key={CANARY}")
        return super()._generate(*args, **kwargs)


@pytest.mark.parametrize("fails", [False, True])
def test_no_file_of_a_run_and_no_word_on_the_screen_holds_a_key(
    begin: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    fails: bool,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    begun = begin(max_rounds=1, strategy="textgrad")
    workspace = register(
        Workspace(
            begun.folder.resolve(), begun.workspace.settings, begun.workspace.task, editor_chat=KeyedEditor(fails=fails)
        )
    )
    run = Run(begun.folder, workspace)
    if fails:
        with pytest.raises(EditorCallError) as caught:
            run.adapt()
        assert CANARY not in str(caught.value)
    else:
        assert run.adapt().report["rounds"][0]["error"] is None
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err + caplog.text
    holding = [path for path in run.folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert holding == []


class PlainKeys(RuleEditor):
    """A chat model of a user's, which holds its keys as plain text."""

    api_key: str = "plain-text-of-a-key"
    tokenizer_name: str = "the-name-of-a-tokenizer"
    model_kwargs: dict[str, Any] = Field(
        default_factory=lambda: {
            "extra_headers": {
                "Authorization": "nested-text-of-a-key",
                "X-Api-Key": "another-nested-key",
                "X-Key-Id": "the-id-of-a-key",
            }
        }
    )


def test_keys_are_found_by_the_names_of_their_fields_and_by_their_looks() -> None:
    found = secrets_of(PlainKeys())
    assert set(found) == {"plain-text-of-a-key", "nested-text-of-a-key", "another-nested-key", "the-id-of-a-key"}
    for text in (
        "AKIAIOSFODNN7EXAMPLE",
        "github_pat_11ABCDEFG0abcdefghij",
        "{'api_key': 'abc-def'}",
        "api_key: 'abc-def'",
        '"x-api-key": "abc-def"',
    ):
        assert SECRET_MARK in scrub(f"refused {text} here")
        assert "abc-def" not in scrub(text)
    assert scrub("the monkey: 'tis a word; max_tokens: 12") == "the monkey: 'tis a word; max_tokens: 12"


def test_what_leaves_the_machine_names_no_key_no_user_and_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    held = {"HF_TOKEN": "token value", "PGPASSWORD": "pass word", "AWS_ACCESS_KEY_ID": "key id", "PATH": "/usr/bin",
            "TOKENIZERS_PARALLELISM": "falsely", "SHORT_KEY": "12345"}  # fmt: skip
    assert environment_secrets(held) == ("token value", "pass word", "key id")
    for text, left in {
        "/home/me/models/x": "~/models/x",
        "'/home/me'": "'~'",
        "/home/meander /srv/home/me": "/home/meander /srv/home/me",
        "https://me@host/x https://me:word@host": f"https://{SECRET_MARK}@host/x https://{SECRET_MARK}@host",
        "me@host.org": "me@host.org",
        "is token value": f"is {SECRET_MARK}",
    }.items():
        assert publishable(text, ["token value"]) == left
    monkeypatch.setenv("HOME", "/")
    assert publishable("/a/b") == "/a/b"
