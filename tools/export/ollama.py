"""The pair for Ollama: a GGUF file and a Modelfile with SYSTEM, MESSAGE lines and TEMPLATE.

Ollama writes prompts by a Go template of its own. It is made from what the base's chat template puts around each turn.
Ollama puts MESSAGE lines before the messages of a request; a client's own system turn takes the place of SYSTEM.
"""

import json
from dataclasses import dataclass

from nslora.tools.errors import ExportError
from nslora.tools.inference.chat_template import MARK, PLAIN_STOP, ChatFormat
from nslora.tools.prompt import Prompt


@dataclass(frozen=True)
class Turns:
    """A chat template as Ollama can write it.

    Attributes:
        before: What stands before a turn's content, by role; after: behind it.
        lead: What stands before the first turn of a dialogue that has no system turn.
        opening: The opening of a reply.
        folds: Whether the first user turn says the system text, since the base knows no system turns.
    """

    before: dict[str, str]
    after: dict[str, str]
    lead: str
    opening: str
    folds: bool

    def render(self, dialogue: list[dict[str, str]]) -> str:
        """Write a dialogue as the Go template does."""
        told = dialogue[0]["role"] == "system"
        text = "" if told else self.lead
        for i, turn in enumerate(dialogue):
            folded = self.folds and told and i == 1
            text += ("" if folded else self.before[turn["role"]]) + turn["content"] + self.after[turn["role"]]
        return text + self.opening


def turns_of(chat: ChatFormat) -> Turns:
    """What a chat template puts around each turn.

    Raises:
        ExportError: If it writes a turn in different ways, which Ollama's template could not follow.
    """
    asked = [{"role": role, "content": MARK} for role in ("user", "assistant", "user")]
    first, reply, again, _ = chat.render(asked).split(MARK)
    opened = chat.render(asked[:1]).rpartition(MARK)[2]
    after_user, before_user = _shared_start(reply, opened), _shared_end(first, again)
    lead, after_reply = first.removesuffix(before_user), again.removesuffix(before_user)
    before_system, between, _ = chat.render([{"role": "system", "content": MARK}, *asked[:1]]).split(MARK)
    folds = not between.endswith(before_user)
    found = Turns(
        {"system": before_system, "user": before_user, "assistant": reply.removeprefix(after_user)},
        {
            "system": between if folds else between.removesuffix(before_user),
            "user": after_user,
            "assistant": after_reply,
        },
        lead,
        opened.removeprefix(after_user),
        folds,
    )
    said = ("Be brief.", "2 + 2?", "4", "3 + 3?", "7", "8?")
    roles = ("system", *("user", "assistant") * 2, "user")
    shots = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    if any(found.render(each) != chat.render(each) for each in (shots, shots[:4], shots[:2], shots[1:], shots[1:2])):
        raise ExportError(
            "The base's chat template writes turns in a way that Ollama's templates cannot follow: export --gguf, and "
            "serve it by llama.cpp, which reads the template in the file."
        )
    return found


def modelfile(chat: ChatFormat, prompt: Prompt, gguf: str) -> str:
    """Write the Modelfile.

    Args:
        chat: The base's chat format.
        prompt: The prompt.
        gguf: Name of the GGUF file beside the Modelfile.

    Raises:
        ExportError: If the template or the prompt cannot be written into a Modelfile.
    """
    turns = turns_of(chat)
    messages = prompt.messages(MARK)
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    before, _, after = messages.pop()["content"].partition(MARK)
    template = _go_template(turns, _go(before), _go(after))
    stops = [chat.tokenizer.convert_ids_to_tokens(token) for token in chat.stop_ids]
    lines = [
        f"FROM ./{gguf}",
        f"TEMPLATE {_quoted(template)}",
        *([f"SYSTEM {_quoted(system)}"] if system else []),
        *(f"MESSAGE {turn['role']} {_quoted(turn['content'])}" for turn in messages),
        "PARAMETER temperature 0",
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        *([f"PARAMETER stop {json.dumps(PLAIN_STOP)}"] if chat.is_plain else []),
    ]
    return "\n".join(lines) + "\n"


def _go_template(turns: Turns, before: str, after: str) -> str:
    """The TEMPLATE of a Modelfile. before, after: what the question template puts around the last user turn."""
    around = {role: (_go(turns.before[role]), _go(turns.after[role])) for role in turns.before}
    asked = around["user"][0]
    told = '(eq (index $.Messages 0).Role "system")'
    if turns.folds:
        asked = f"{{{{ if not (and (eq $i 1) {told}) }}}}{asked}{{{{ end }}}}"
    return (
        f"{{{{ if not {told} }}}}{_go(turns.lead)}{{{{ end }}}}"
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if eq .Role "system" }}}}{around["system"][0]}{{{{ .Content }}}}{around["system"][1]}'
        f'{{{{ else if eq .Role "user" }}}}{asked}'
        f"{{{{ if $last }}}}{before}{{{{ end }}}}{{{{ .Content }}}}{{{{ if $last }}}}{after}{{{{ end }}}}"
        f"{around['user'][1]}"
        f'{{{{ else if eq .Role "assistant" }}}}{around["assistant"][0]}{{{{ .Content }}}}{around["assistant"][1]}'
        f"{{{{ end }}}}{{{{ end }}}}{_go(turns.opening)}"
    )


def _shared_start(one: str, other: str) -> str:
    """The longest text that both begin with."""
    count = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:count]


def _shared_end(one: str, other: str) -> str:
    return _shared_start(one[::-1], other[::-1])[::-1]


def _go(text: str) -> str:
    """A text in a Go template."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text else text


def _quoted(text: str) -> str:
    """A text in a Modelfile, which has no escapes. Raises ExportError if it cannot hold the text."""
    if '"""' in text:
        raise ExportError('The prompt holds """, which a Modelfile cannot: export --gguf, and serve it by llama.cpp.')
    return f'"""{text}"""'
