"""From a run's settings to its editor."""

from __future__ import annotations

from collections.abc import Callable

from nslora.tools.editor.call_log import EditorLog
from nslora.tools.editor.chat_models import connect_editor
from nslora.tools.editor.editor import Caps, Editor
from nslora.tools.editor.policy_editor import PolicyChat
from nslora.tools.editor.settings import EditorSettings
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.policy import Policy
from nslora.tools.workspace.settings import RunSettings


def editor_of(settings: RunSettings, *, chat: Chat | None, log: EditorLog, policy: Callable[[], Policy]) -> Editor:
    """The editor that the settings describe; no request is sent and no policy loaded.

    chat: the chat model where the user gave an object. policy: makes the policy, should it be its own editor.
    Raises ModelError for an editor that cannot be connected, SettingsError for a cap on cost without a price.
    """
    editing = settings.editing
    if chat is None:
        chat = connect_editor(
            settings.editor,
            base_url=settings.editor_base_url,
            policy_chat=lambda: PolicyChat(policy=policy, max_tokens=editing.policy_reply_tokens),
            timeout_s=editing.timeout_s,
            transport_retries=editing.transport_retries,
        )
    return Editor(
        chat,
        log=log,
        edit=editing.edit,
        max_failures=editing.failures,
        retries=editing.retries,
        patience=editing.patience,
        caps=caps_of(editing),
        prices={name: price.model_dump() for name, price in editing.prices.items()},
        structured=editing.structured,
        rules=[*editing.rules, *protection_rules(editing.protected)],
    )


def caps_of(editing: EditorSettings) -> Caps:
    """The most that the editor may cost in a run."""
    return Caps(editing.max_calls, editing.max_tokens, editing.max_cost, editing.reply_tokens)


def protection_rules(protected: tuple[str, ...]) -> list[str]:
    """What the editor is told of texts that must stay; an edit that lost one is refused all the same."""
    return [f"This text must stay in the variable, word for word: {text}" for text in protected]
