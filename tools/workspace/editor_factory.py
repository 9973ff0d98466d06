"""The editor that the settings of a run describe."""

from __future__ import annotations

from collections.abc import Callable

from nslora.tools.editor.call_log import EditorLog, RecordedChat
from nslora.tools.editor.chat_models import connect_editor
from nslora.tools.editor.editor import Caps, Editor
from nslora.tools.editor.policy_editor import PolicyChat
from nslora.tools.editor.wrapped_chat import Chat
from nslora.tools.policy import Policy
from nslora.tools.workspace.settings import RunSettings


def editor_of(settings: RunSettings, *, chat: Chat | None, log: EditorLog, policy: Callable[[], Policy]) -> Editor:
    """Make the editor, without sending a request or loading the policy.

    Args:
        settings: The settings of the run.
        chat: The user's chat model object, or None if the settings name the editor.
        log: The record of its calls.
        policy: Returns the policy, for the editor "policy".

    Raises:
        ModelError: The editor cannot be connected.
        SettingsError: max_cost is set and the editor has no price.
    """
    editing = settings.editing
    if chat is None:
        chat = connect_editor(
            settings.editor,
            base_url=settings.editor_base_url,
            policy_chat=lambda: PolicyChat(policy=policy, max_tokens=editing.policy_reply_tokens),
            timeout_s=editing.timeout_s,
        )
    # A record answers the requests of the protocol that made it, whatever the settings say.
    recorded = isinstance(chat, RecordedChat) and chat.log.of("critique")
    # The editor may still lose a protected text; `check_prompt` then refuses the edit.
    protection = [f"This text must stay in the variable, word for word: {text}" for text in editing.protected]
    return Editor(
        chat,
        log=log,
        protocol="textgrad" if recorded else settings.protocol,
        edit=editing.edit,
        max_failures=editing.failures,
        max_input_tokens=editing.max_input_tokens,
        retries=editing.retries,
        patience=editing.patience,
        caps=Caps(editing.max_calls, editing.max_tokens, editing.max_cost, editing.reply_tokens),
        prices={name: price.model_dump() for name, price in editing.prices.items()},
        structured=editing.structured,
        transport_retries=editing.transport_retries,
        rules=[*editing.rules, *protection],
    )
