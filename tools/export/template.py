"""A chat template that puts a prompt in by itself, so that any client of the exported model gets the tuned behaviour.

The base's own template stays as it is. Before it stands a preamble that rewrites `messages` as `Prompt.messages` does:
the prompt's system turn, its demonstrations, the turns of the request, and its last user turn in the question template.
A system turn of the client follows the prompt's in the same turn, since templates know one alone. Earlier turns of a
dialogue stay as they are, as in a run. `nslora=false` among the template's variables (`chat_template_kwargs` of vLLM,
llama.cpp and transformers) switches the preamble off.

Literals are escaped so that Jinja and the C++ engine of llama.cpp read the same text: only backslash, quote and newline
have a backslash in front.
"""

from nslora.tools.inference.chat_template import DATED, MARK, ChatFormat
from nslora.tools.prompt import Prompt

SWITCH, THINKING = "nslora", "enable_thinking"  # variables of the template
# Text of a turn that comes in parts, as OpenAI's protocol allows. No `for`: vLLM would hand over parts to a template
# that loops over a turn's content.
_TEXT = (
    "set nslora_text = message['content'] if message['content'] is string else "
    "(message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join)"
)


def exported_template(chat: ChatFormat, prompt: Prompt) -> str:
    """Write the chat template of the pair.

    For a request of one user turn, and for a dialogue, it renders what the run sent to the model: the base's template
    with the run's setting of thinking, and without what its generation prompt has too much.

    Args:
        chat: The base's template and the run's setting of thinking.
        prompt: The prompt.
    """
    own = chat.tokenizer.chat_template
    own = own if isinstance(own, str) else str(own["default"])
    dated = DATED if "strftime_now" in own else ""
    thinks = (
        "" if chat.thinking == "template" or THINKING not in own else _unless_given(THINKING, chat.thinking == "on")
    )
    surplus, header = chat.opening
    if surplus:
        own = (
            f"{{%- set nslora_all -%}}{own.lstrip()}{{%- endset -%}}"
            f"{{{{- nslora_all[:-{len(surplus)}] if add_generation_prompt and nslora_all.endswith({_literal(surplus)}) "
            "else nslora_all -}}"
        )
    if header:
        own += f"{{%- if add_generation_prompt -%}}{{{{- {_literal(header)} -}}}}{{%- endif -%}}"
    # A base that begins with a space or a newline keeps it: `-%}` would take it away.
    end = "{%- endif -%}" if own[:1] in "{<" else "{%- endif %}\n"
    return f"{dated}{thinks}{_preamble(chat, prompt)}{end}{own}"


def _unless_given(name: str, value: bool) -> str:
    return f"{{%- if {name} is not defined -%}}{{%- set {name} = {str(value).lower()} -%}}{{%- endif -%}}\n"


def _preamble(chat: ChatFormat, prompt: Prompt) -> str:
    """Rewrite `messages`, without the `endif` that closes the switch."""
    turns = prompt.messages(MARK)
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    before, _, after = turns.pop()["content"].partition(MARK)
    asked = " + ".join([*([_literal(before)] if before else []), "nslora_text", *([_literal(after)] if after else [])])
    shots = ", ".join(f"{{'role': '{turn['role']}', 'content': {_literal(turn['content'])}}}" for turn in turns)
    if chat.knows_system_turns:
        led = "[{'role': 'system', 'content': nslora_at.system}] + nslora_at.turns"
    else:  # the first user turn says it, as in the run
        led = (
            "[{'role': nslora_at.turns[0]['role'], 'content': nslora_at.system + '\\n\\n' + "
            "nslora_at.turns[0]['content']}] + nslora_at.turns[1:]"
        )
    statements = (
        f"if {SWITCH} is not defined or {SWITCH}",
        f"set nslora_at = namespace(system={_literal(system)}, turns=[{shots}], last=-1)",
        "for message in messages",
        "if message['role'] == 'user'",
        "set nslora_at.last = loop.index0",
        "endif",
        "endfor",
        "for message in messages",
        "if message['role'] == 'system'",
        _TEXT,
        "set nslora_at.system = nslora_at.system + ('\\n\\n' if nslora_at.system and nslora_text else '')",
        "set nslora_at.system = nslora_at.system + nslora_text",
        "elif loop.index0 == nslora_at.last",
        _TEXT,
        f"set nslora_at.turns = nslora_at.turns + [{{'role': 'user', 'content': {asked}}}]",
        "else",
        "set nslora_at.turns = nslora_at.turns + [message]",
        "endif",
        "endfor",
        "if nslora_at.system and nslora_at.turns",
        f"set messages = {led}",
        "else",
        "set messages = nslora_at.turns",
        "endif",
    )
    return "".join(f"{{%- {each} -%}}\n" for each in statements)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
