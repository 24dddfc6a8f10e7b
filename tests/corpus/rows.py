"""Odd rows: what conversations look like in published sets, and beside them."""

import json
from typing import Any

from .inputs import Kind, RowInput

USER = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
CHAT: dict[str, Any] = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
WHOLE: dict[str, Any] = {"chosen": [USER, BLUE], "rejected": [USER, GREEN]}
TEXT = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


WELL = {"role": "assistant", "content": "Well,"}
KIND = {"role": "system", "content": "Be kind."}
TYPED = {"prompt": "<s>The sky is", "chosen": " blue.</s>", "rejected": " green.</s>"}


def call(name: str, **more: Any) -> dict[str, Any]:
    function = {"type": "function", "function": {"name": name, "arguments": {"zone": "Z"}}}
    return {"role": "assistant", **more, "tool_calls": [function]}


def parts(*texts: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def as_text(row: dict[str, Any], write: Any = json.dumps) -> dict[str, Any]:
    return {name: write(value) for name, value in row.items()}


def share_gpt(message: dict[str, Any]) -> dict[str, Any]:
    return {"from": {"user": "human", "assistant": "gpt"}[message["role"]], "value": message["content"]}


CALLS = CHAT | {"chosen": [call("now")], "rejected": [call("then")]}
RESULT = {"role": "tool", "name": "now", "content": "6"}

KINDS = [
    Kind(
        "rows",
        "prompts, written out or not",
        "TRL",
        {
            "messages": RowInput(CHAT),
            "whole conversations": RowInput(WHOLE),
            "whole conversations beside the prompt's text": RowInput(WHOLE | {"prompt": "What color?"}, as_trl=WHOLE),
            "text": RowInput(TEXT, template=None),
            "texts that begin alike": RowInput(
                {"chosen": "The sky is blue.", "rejected": "The sky is green."}, template=None
            ),
            "one text begins the other": RowInput(
                {"chosen": "The sky is blue.", "rejected": "The sky is"}, "empty response", template=None
            ),
            "texts that begin otherwise": RowInput(
                {"chosen": "It is blue.", "rejected": "Green."}, "no common prefix", template=None
            ),
            "a prompt that ends with the assistant": RowInput(
                CHAT | {"prompt": [USER, {"role": "assistant", "content": "Well,"}]}
            ),
            "an empty prompt": RowInput(CHAT | {"prompt": []}, "empty prompt"),
            "typed BOS and EOS": RowInput(
                {"prompt": "<s>The sky is", "chosen": " blue.</s>", "rejected": " green.</s>"},
                template=None,
                as_trl=TEXT,
            ),
        },
    ),
    Kind(
        "rows",
        "messages stored as text",
        "TRL on the messages",
        {
            "JSON": RowInput(as_text(CHAT), as_trl=CHAT),
            "Python": RowInput(as_text(CHAT, str), as_trl=CHAT),
            "whole conversations": RowInput(as_text(WHOLE), as_trl=WHOLE),
            "whole ones beside the prompt's text": RowInput(as_text(WHOLE) | {"prompt": "What color?"}, as_trl=WHOLE),
            "indented JSON": RowInput(as_text(CHAT, lambda value: json.dumps(value, indent=2)), as_trl=CHAT),
            "responses alone as text": RowInput(as_text(CHAT) | {"prompt": [USER]}, as_trl=CHAT),
            "neither JSON nor Python": RowInput(
                {name: text.replace("}, {", "}\n {")[:-3] for name, text in as_text(WHOLE).items()}, "bad message"
            ),
            "numpy's array": RowInput(as_text(CHAT, lambda value: f"array({value}, dtype=object)"), "bad message"),
            "JSON that is no conversation": RowInput(
                TEXT | {"chosen": '[{"name": "a"}]', "rejected": '{"role": "cook"}'}, template=None
            ),
            "text about messages": RowInput(TEXT | {"chosen": ' [{"role": "user"', "rejected": " no"}, template=None),
        },
    ),
    Kind(
        "rows",
        "tools and chat_template_kwargs",
        "TRL",
        {
            "tools": RowInput(CHAT | {"tools": [TOOL]}, template="tools"),
            "tools as JSON text": RowInput(CHAT | {"tools": json.dumps([TOOL])}, template="tools"),
            "tools of a template that has none": RowInput(CHAT | {"tools": [TOOL]}),
            "no tools in this row": RowInput(CHAT | {"tools": None}, template="tools"),
            "an empty list of tools": RowInput(CHAT | {"tools": []}, template="tools"),
            "chat_template_kwargs": RowInput(CHAT | {"chat_template_kwargs": {"locale": "en"}}, template="locale"),
            "enable_thinking": RowInput(CHAT | {"chat_template_kwargs": {"enable_thinking": False}}, template="tools"),
            "null instead of a mapping": RowInput(CHAT | {"chat_template_kwargs": None}, template="tools", as_trl=CHAT),
            "an argument of apply_chat_template": RowInput(
                CHAT | {"chat_template_kwargs": {"tokenize": True}}, "sets tokenize", template="tools"
            ),
            "tools that are names": RowInput(CHAT | {"tools": ["now"]}, "not a list of JSON schemas", template="tools"),
        },
    ),
    Kind(
        "rows",
        "tool calls",
        "TRL",
        {
            "replies without content": RowInput(CALLS, template="tools"),
            "replies with empty content": RowInput(
                CHAT | {"chosen": [call("now", content="")], "rejected": [call("then", content="")]}, template="tools"
            ),
            "replies with content null": RowInput(
                CHAT | {"chosen": [call("now", content=None)], "rejected": [call("then", content=None)]},
                template="tools",
            ),
            "a call, its result, an answer": RowInput(
                CHAT | {"chosen": [call("now"), RESULT, BLUE], "rejected": [call("then"), RESULT, GREEN]},
                template="tools",
            ),
            "a call in the prompt": RowInput(CHAT | {"prompt": [USER, call("now"), RESULT]}, template="tools"),
            "a call and an answer": RowInput(CALLS | {"rejected": [GREEN]}, template="tools"),
            "calls that a template does not write": RowInput(CALLS, "chosen equals rejected"),
            "neither content nor a call": RowInput(CHAT | {"chosen": [{"role": "assistant"}]}, "bad message"),
            "an empty list of calls": RowInput(
                CHAT | {"chosen": [{"role": "assistant", "tool_calls": []}]}, "bad message"
            ),
            "a control token in a call": RowInput(
                CALLS | {"chosen": [call("<|im_end|>")]}, "control token", template="tools"
            ),
        },
    ),
    Kind(
        "rows",
        "content in parts",
        "TRL",
        {
            "for a template that reads parts": RowInput(
                CHAT | {"prompt": [parts("What color?")], "chosen": [parts("Blue.", role="assistant")]},
                template="parts",
            ),
            "several, for such a template": RowInput(CHAT | {"prompt": [parts("What ", "color?")]}, template="parts"),
            "for a template that reads text": RowInput(
                CHAT | {"prompt": [parts("What color is the sky?")]}, as_trl=CHAT
            ),
            "several, for such a one": RowInput(CHAT | {"prompt": [parts("What color is ", "the sky?")]}, as_trl=CHAT),
            "null beside the text, as Arrow has it": RowInput(
                CHAT
                | {"prompt": [{"role": "user", "content": [{"type": "text", "text": USER["content"], "image": None}]}]},
                as_trl=CHAT,
            ),
            "an image": RowInput(
                CHAT | {"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "null or not text"
            ),
            "no part": RowInput(CHAT | {"prompt": [{"role": "user", "content": []}]}, "null or not text"),
            "text without a type": RowInput(
                CHAT | {"prompt": [{"role": "user", "content": [{"text": "a"}]}]}, "null or not text"
            ),
            "a control token in a part": RowInput(CHAT | {"prompt": [parts("a<|im_end|>")]}, "control token"),
        },
    ),
    Kind(
        "rows",
        "forms of other trainers",
        "TRL",
        {
            "one message instead of a list (axolotl)": RowInput(
                {"messages": [USER], "chosen": BLUE, "rejected": GREEN}, "chosen is dict"
            ),
            "from and value (ShareGPT)": RowInput(
                {"conversations": [share_gpt(USER)], "chosen": [share_gpt(BLUE)], "rejected": [share_gpt(GREEN)]},
                "ShareGPT",
            ),
            "a list of outputs (Alpaca)": RowInput(
                {"instruction": "a", "input": "", "output": ["b", "c"]}, "column 'chosen' is missing"
            ),
            "a prompt beside (H4)": RowInput(
                WHOLE | {"prompt": "What color is the sky?", "prompt_id": "x"}, as_trl=WHOLE
            ),
            "an unknown role": RowInput(CHAT | {"chosen": [{"role": "gpt", "content": "a"}]}, "unknown role"),
            "a list of texts": RowInput(CHAT | {"chosen": ["It is blue."]}, "bad message"),
            "a text and messages": RowInput(CHAT | {"chosen": "It is blue."}, "null or not text"),
            "null": RowInput(CHAT | {"chosen": None}, "null or not text"),
            "a typo in a column": RowInput({"prompt": "a", "choosen": "b", "rejected": "c"}, "--chosen-column choosen"),
            "scores instead of responses": RowInput(CHAT | {"chosen": 0.7, "rejected": 0.1}, "chosen is float"),
        },
    ),
    Kind(
        "rows",
        "templates and tokenizers",
        "TRL",
        {
            "a system message that is refused": RowInput(
                CHAT | {"prompt": [{"role": "system", "content": "Be kind."}, USER]},
                "System role not supported",
                template="no system",
            ),
            "two turns of the user": RowInput(CHAT | {"prompt": [USER, USER]}, "must alternate", template="in turn"),
            "generation tags": RowInput(CHAT, template="generation tags"),
            "reasoning beside the content": RowInput(
                CHAT | {"chosen": [BLUE | {"reasoning_content": "Looking up."}]}, template="tools"
            ),
            "a control token in the reasoning": RowInput(
                CHAT | {"chosen": [BLUE | {"reasoning_content": "<|im_end|>"}]}, "control token", template="tools"
            ),
            "marks that take blanks": RowInput(CHAT, template="marks"),
            "a response after such a mark that begins with blanks": RowInput(
                CHAT | {"chosen": [{"role": "assistant", "content": "  \n It is blue."}]}, template="marks"
            ),
            "a text that begins with two tokens": RowInput(TEXT, template="two"),
            "those two typed in the text": RowInput(
                TEXT | {"prompt": "<pad><|im_start|>The sky is"}, template="two", as_trl=TEXT
            ),
            "null fields of messages, as Arrow has them": RowInput(
                CHAT | {"chosen": [BLUE | {"tool_calls": None, "name": None}]}, template="tools"
            ),
        },
    ),
]
