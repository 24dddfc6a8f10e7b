"""Tokenizers with chat templates in the styles of published models, made once."""

from functools import cache
from typing import Any

import transformers
from support import CHAT_TEMPLATE, make_tokenizer
from tokenizers import AddedToken, processors

TOOLS = (
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{%- if m.tool_calls %}<tool_call>{{ m.tool_calls | tojson }}</tool_call>{% endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
IN_TURN = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% endfor %}"
)
SYSTEM_SET = "{% if locale %}<|im_start|>system\n{{ locale }}<|im_end|>\n{% endif %}"
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "tools": TOOLS,
    "parts": PARTS,
    "no system": NO_SYSTEM + CHAT_TEMPLATE,
    "in turn": IN_TURN + CHAT_TEMPLATE,
    "locale": SYSTEM_SET + CHAT_TEMPLATE,
    "generation tags": CHAT_TEMPLATE.replace(
        "{{ message['content'] }}", "{% generation %}{{ message['content'] }}{% endgeneration %}"
    ),
}


@cache
def tokenizer_of(name: str | None) -> Any:
    """A tokenizer with the template of this name; None is one for plain text, "two" and "marks" are others of these."""
    if name is None:
        return make_tokenizer(chat=False)
    if name == "two":
        return begins_with_two()
    if name == "marks":
        return with_marks()
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def begins_with_two() -> Any:
    """As GLM-4's: two tokens begin a text, and none is BOS."""
    backend = make_tokenizer(chat=False).backend_tokenizer
    first, second = "<pad>", "<|im_start|>"
    ids = [(token, backend.token_to_id(token)) for token in (first, second)]
    backend.post_processor = processors.TemplateProcessing(single=f"{first} {second} $A", special_tokens=ids)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<s>")


def with_marks() -> Any:
    """As Phi-3's: marks of turns take the white space after them."""
    tokenizer = make_tokenizer(chat=False)
    marks = [
        AddedToken(f"<|{name}|>", special=True, rstrip=True, normalized=False) for name in ("user", "assistant", "end")
    ]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    )
    return tokenizer
