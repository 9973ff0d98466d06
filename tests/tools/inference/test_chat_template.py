"""Prompts and trained texts against the templates of real families, as TRL and the wheel of SmolLM2 ship them."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import trl

from nslora.tools.errors import ModelError
from nslora.tools.inference.chat_template import DATED, PLAIN_TEMPLATE, ChatFormat
from nslora.tools.policy import Thinking
from nslora.tools.testing.tiny_model import CHATML, byte_tokenizer
from nslora.tools.thinking import split_thinking, thought_in

FOLDER = Path(trl.__file__).parent / "chat_templates"
SHIPPED = """
qwen2_5 qwen3 qwen3_instruct_2507 qwen3_5_think qwen3_5_nothink qwen3_8 llama3 llama3_1 llama3_2 gemma gemma3 gemma4
gemma4_v5 phi3 phi3_5 deepseek_r1_distill deepseekv3 glm4moe gptoss cohere cohere2 lfm2 lfm2_2_5 nemotron_3_nano
muse_glimmer
""".split()  # noqa: SIM905
# As Mistral documents its tokenizers V1 (spaces outside) and V3; SmolLM2's is ChatML with a system turn of its own.
MISTRAL_V3 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
MISTRAL_V1 = MISTRAL_V3.replace("[INST] {{", " [INST] {{").replace("}}[/INST]", "}} [/INST]")
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nI am SmolLM.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LITERAL = {"mistral v3": MISTRAL_V3, "mistral v1": MISTRAL_V1, "smollm2": SMOLLM2, "chatml": CHATML, "none": ""}
TEMPLATES = {**{name: (FOLDER / f"{name}.jinja").read_text(encoding="utf-8") for name in SHIPPED}, **LITERAL}
TOKEN = re.compile(r"<[|｜/]?[\w ▁｜|/]+[|｜]?>|\[/?(?:INST|THINK)\]")
SHOTS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3 + 3?"},
]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
THOUGHT = "<think>\nIt may be 7.\n</think>\n\n"


@functools.cache
def tokenizer_of(name: str, *, pieces: bool = False) -> Any:
    """A tokenizer of single bytes (or of SentencePiece's letters) that knows the special tokens of the template."""
    tokenizer = letters() if pieces else byte_tokenizer(chat_template=True)
    tokenizer.chat_template = TEMPLATES[name] or None
    tokenizer.bos_token = "<s>"
    marks = sorted({each for each in TOKEN.findall(TEMPLATES[name]) if "think" not in each.lower()})
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def letters() -> Any:
    """As Llama 2, Mistral and Phi-3 tokenize: a space before the text, and none after a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte = {f"<0x{i:02X}>": i for i in range(256)}
    known = dict.fromkeys(["<unk>", *byte, "▁", *map(chr, range(33, 127)), "▁4", "▁6", "\n"])
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(known)}, [("▁", "4"), ("▁", "6")], byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def own_rendering(chat: ChatFormat, dialogue: list[dict[str, str]], message: dict[str, str]) -> str:
    """What the template itself writes of an answered dialogue, whatever nslora does."""
    switch: dict[str, Any] = {} if chat.thinking == "template" else {"enable_thinking": chat.thinking == "on"}
    template = chat.tokenizer.chat_template  # with the date that prompts keep
    dated = DATED + template if "strftime_now" in template else template
    return str(chat.tokenizer.apply_chat_template([*dialogue, message], chat_template=dated, tokenize=False, **switch))


def trained(chat: ChatFormat, dialogue: list[dict[str, str]], reply: str) -> list[int]:
    prompt, completion = chat.pair_ids(dialogue, reply)
    assert chat.tokenizer.decode(prompt) != ""
    return [*prompt, *completion]


def told(chat: ChatFormat) -> list[dict[str, str]]:
    """The dialogue as this template can write it."""
    return SHOTS if chat.knows_system_turns else [{"role": "user", "content": "Be brief.\n\n2 + 2?"}, *SHOTS[2:]]


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_tokens_are_the_templates_own_rendering(name: str, pieces: bool) -> None:
    chat = ChatFormat(tokenizer_of(name, pieces=pieces))
    text = own_rendering(chat, told(chat), {"role": "assistant", "content": "6"})
    whole = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = trained(chat, SHOTS, "6")
    if chat.end_of_turn not in chat.tokenizer(chat._around_reply[1], add_special_tokens=False)["input_ids"]:
        assert found.pop() == chat.tokenizer.eos_token_id  # GLM's template ends no turn
    assert whole[: len(found)] == found
    rest = chat.tokenizer.decode(whole[len(found) :], skip_special_tokens=True)
    assert not rest.strip()
    assert chat.prompt_ids(SHOTS)[: len(chat.pair_ids(SHOTS, "6")[0])] == chat.pair_ids(SHOTS, "6")[0]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if ChatFormat(tokenizer_of(name)).thinks])
@pytest.mark.parametrize("thinking", ["off", "on", "template"])
@pytest.mark.parametrize("thought", ["", THOUGHT])
def test_a_trained_text_has_one_block_of_thinking_at_most(name: str, thinking: Thinking, thought: str) -> None:
    chat = ChatFormat(tokenizer_of(name), thinking=thinking)
    opening, closing = (each.strip() for each in chat._markers or ("", ""))
    text = chat.tokenizer.decode(trained(chat, SHOTS[-1:], f"{thought}6"))
    assert text.count(closing) <= 1
    assert text.count(opening) <= 1
    shut = thinking == "off" or (name == "qwen3_5_nothink" and thinking == "template")
    assert ("It may be 7." in text) == (bool(thought) and not shut)
    assert "6" in text.rpartition(closing)[2] if closing in text else "6" in text
    said = {"role": "assistant", "content": "6"}
    if thought and not shut:
        said |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "It may be 7.")
    own = own_rendering(chat, SHOTS[-1:], said)
    if ("It may be 7." in own) == ("It may be 7." in text) and closing in own and "</think>6" not in own:
        assert own.startswith(text.removesuffix(chat.tokenizer.decode([chat.end_of_turn])))


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "smollm2", "none"])
def test_a_template_without_thinking_writes_a_references_thinking_as_it_came(name: str) -> None:
    chat = ChatFormat(tokenizer_of(name))
    assert not chat.thinks
    assert chat.tokenizer.decode(trained(chat, SHOTS, f"{THOUGHT}6")).count(f"{THOUGHT}6") == 1
    with pytest.raises(ModelError, match=r"thinking is on, but the chat template of m writes no thinking"):
        ChatFormat(tokenizer_of(name), thinking="on").refuse_unusable("m")


@pytest.mark.parametrize(
    ("name", "thinking", "generated", "thought", "answer"),
    [
        ("qwen3", "on", "<think>\n7?\n</think>\n\n6<|im_end|>", "7?", "6"),
        ("qwen3", "on", "<think>\nIs it 7 or", "Is it 7 or", ""),
        ("qwen3", "template", "6", "", "6"),
        ("qwen3", "off", "7?\n</think>\n\n6", "7?", "6"),
        ("qwen3", "off", "<think>7?</think> no <think>8?</think>6", "7?</think> no <think>8?", "6"),
        ("deepseek_r1_distill", "template", "7?\n</think>\n\n6", "7?", "6"),
        ("deepseek_r1_distill", "on", "Is it 7 or", "Is it 7 or", ""),
        ("deepseek_r1_distill", "off", "6", "", "6"),
        ("gemma4", "on", "<|channel>thought\n7?\n<channel|>6<turn|>", "7?", "6"),
        ("gptoss", "on", f"{ANALYSIS}7?{FINAL}6", "7?", "6"),
        ("gptoss", "on", "<|channel|>final<|message|>6<|return|>", "", "6"),
        ("gptoss", "on", f"{ANALYSIS}7? or", "7? or", ""),
        ("llama3", "off", "<think>7?</think>6<|eot_id|>", "7?", "6"),
        ("llama3", "off", "6", "", "6"),
    ],
)  # fmt: skip
def test_a_reply_is_read_as_thinking_and_answer(
    name: str, thinking: Thinking, generated: str, thought: str, answer: str
) -> None:
    chat = ChatFormat(tokenizer_of(name), thinking=thinking)
    reply = chat.decode(chat.tokenizer(generated, add_special_tokens=False)["input_ids"])
    before, after = split_thinking(reply)
    assert (thought_in(before), after) == (thought, answer)
    assert before + after == reply


@pytest.mark.parametrize("pieces", [False, True])
def test_a_base_without_a_template_leaves_one_that_renders_what_was_trained(tmp_path: Path, pieces: bool) -> None:
    from transformers import AutoTokenizer

    chat = ChatFormat(tokenizer_of("none", pieces=pieces))
    found = trained(chat, SHOTS, "6")
    chat.save_plain(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert other.apply_chat_template([*SHOTS, {"role": "assistant", "content": "6"}], return_dict=False) == found
    assert other.apply_chat_template(SHOTS, add_generation_prompt=True, return_dict=False) == chat.prompt_ids(SHOTS)
    again = ChatFormat(other)
    assert again.is_plain
    assert again.decode(other("6\nQuestion: 4 + 4?")["input_ids"]) == "6"
    ChatFormat(tokenizer_of("chatml")).save_plain(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_beginning_of_text_that_the_tokenizer_adds_is_written_by_the_template() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(chat_template=False)
    tokenizer.bos_token = "<s>"
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    chat = ChatFormat(tokenizer)
    assert chat.tokenizer.chat_template.endswith(PLAIN_TEMPLATE)
    assert chat.prompt_ids(SHOTS)[0] == bos
    assert chat.prompt_ids(SHOTS)[1] != bos
    assert chat.revision == ""  # the same tokens as before there was a template


@pytest.mark.parametrize(("name", "wanted"), [("chatml", ""), ("qwen3", ""), ("gemma", ""), ("mistral v3", "")])
def test_prompts_that_are_as_they_were_keep_the_fingerprint(name: str, wanted: str) -> None:
    assert ChatFormat(tokenizer_of(name)).revision == wanted
    assert ChatFormat(tokenizer_of(name), thinking="template").revision == (
        "+thinking-template" if name == "qwen3" else ""
    )


def test_prompts_that_are_other_ones_get_another_fingerprint() -> None:
    assert ChatFormat(tokenizer_of("deepseek_r1_distill")).revision == "+as-answered"
    assert ChatFormat(tokenizer_of("qwen3"), thinking="on").revision == "+thinking-on"
