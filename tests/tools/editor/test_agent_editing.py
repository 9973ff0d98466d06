"""An editor of an agent's prompt: it sees what was done, and may rewrite the sections of nodes and tools."""

import json
from dataclasses import replace

import pytest
from edits import failure

from nslora.tools.editor.answer_format import SectionedForm, form_for, read_prompt
from nslora.tools.editor.editor import Editor
from nslora.tools.errors import PromptError
from nslora.tools.prompt import Prompt, Section, parse
from nslora.tools.testing.scripted_chat import ScriptedChat, improved
from nslora.tools.trajectory import ModelCall, ToolCall, Trajectory

ROLE, TOOL = Section("researcher", "Look it up."), Section("look_up", "Finds it.")
HOUSE = Section("house", "Be kind.", protected=True)
PROMPT = Prompt(sections=(ROLE, TOOL, HOUSE))
BROKEN = ModelCall((), "<tool_call>{</tool_call>", ("researcher",), "the call is not valid JSON", calls_tools=True)
BEFORE, AFTER = (tuple(ModelCall((), text) for text in texts) for texts in ("ab", "cd"))
DONE = Trajectory((*BEFORE, BROKEN, ToolCall("look_up", "{}", "Ada"), *AFTER), "d")


def test_a_trajectory_is_told_shortened_around_its_fault() -> None:
    assert DONE.fault == 2
    assert DONE.told().splitlines() == [
        "(1 steps)",
        "2. model wrote: b",
        "3. model (sections researcher) wrote: <tool_call>{</tool_call> [malformed call: the call is not valid JSON]",
        "4. tool look_up({}) said: Ada",
        "(1 steps)",
        "6. model wrote: d",
    ]
    assert Trajectory.from_json(DONE.to_json()) == DONE


@pytest.mark.parametrize("protocol", ["textgrad", "reflect"])
def test_the_editor_is_told_what_the_agent_did_and_which_sections_took_part(protocol: str) -> None:
    new = replace(PROMPT, sections=(replace(ROLE, text="Look everything up."), TOOL, HOUSE))
    chat = ScriptedChat([improved(new)], repeat=True)
    shown = failure()
    shown = replace(shown, example=replace(shown.example, trajectory=DONE))
    edit = Editor(chat, protocol=protocol).edit(PROMPT, [shown])  # type: ignore[arg-type]
    sent = "\n".join(str(message.text) for message in chat.requests[-1])
    assert "3. model (sections researcher) wrote" in sent
    assert "Its nodes and tools read the sections researcher, look_up, house by name" in sent
    assert edit.prompts[0].sections[0].text == "Look everything up."


def test_fields_rewrite_sections_by_name_and_protected_ones_stay() -> None:
    assert form_for("document", PROMPT) is SectionedForm
    fields = {"system": "", "question_template": "{question}", "demonstrations": []}
    named = {"sections": [{"name": "look_up", "text": "Finds a word."}]}
    assert read_prompt(json.dumps(fields | named), PROMPT, "document").sections[1].text == "Finds a word."
    for name, part in (("house", "is protected"), ("absent", "does not exist")):
        with pytest.raises(PromptError, match=part):
            read_prompt(json.dumps(fields | {"sections": [{"name": name, "text": "x"}]}), PROMPT, "document")
    assert parse(PROMPT.render()) == PROMPT
