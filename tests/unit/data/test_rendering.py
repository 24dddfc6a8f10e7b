"""Rendering: TRL's four forms give the same text, and a row that cannot be used says why."""

from typing import Any

import pytest
from corpus.templates import tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from support import CHAT_TEMPLATE, make_tokenizer
from trl.data_utils import extract_prompt

from tgdpo.data.preferences import Row
from tgdpo.data.rendering import MAX_CHARACTERS, Columns, Reason, Rendered, Renderer, SetAside
from tgdpo.data.tokenization import begin_of_text_string, control_tokens
from tgdpo.errors import DataError, ModelError

PLAIN = make_tokenizer(chat=False)
CHAT = make_tokenizer(chat=True)

USER = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}


def renderer(tokenizer: Any, columns: Columns | None = None, **options: Any) -> Renderer:
    """A renderer as a scoring run has it."""
    return Renderer(
        tokenizer,
        columns or Columns(),
        control_tokens=control_tokens(tokenizer),
        end_of_turn=tokenizer.eos_token,
        begin_of_text=begin_of_text_string(tokenizer),
        **options,
    )


def render(tokenizer: Any, row: dict[str, Any], **options: Any) -> Rendered:
    return renderer(tokenizer, **options).render(Row(0, row))


def set_aside(tokenizer: Any, row: dict[str, Any], *, after: dict[str, Any] | None = None) -> SetAside:
    """Why `row` is set aside, in a set that begins with `after`."""
    rows = renderer(tokenizer)
    if after:
        rows.render(Row(0, after))
    with pytest.raises(SetAside) as verdict:
        rows.render(Row(1, row))
    return verdict.value


class TestForms:
    """Standard or conversational, explicit or implicit prompt."""

    def test_standard(self) -> None:
        expected = Rendered("The sky is", " blue.", " green.", add_bos=True, add_eos=True)
        assert render(PLAIN, {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}) == expected
        assert render(PLAIN, {"chosen": "The sky is blue.", "rejected": "The sky is green."}) == expected

    def test_conversational(self) -> None:
        expected = Rendered(
            "<s><|im_start|>user\nWhat color is the sky?<|im_end|>\n<|im_start|>assistant\n",
            "It is blue.<|im_end|>",
            "It is green.<|im_end|>",
            add_bos=False,
            add_eos=False,
        )
        assert render(CHAT, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}) == expected
        whole = {"chosen": [USER, BLUE], "rejected": [USER, GREEN]}
        assert render(CHAT, whole) == expected
        # As in UltraFeedback binarized.
        assert render(CHAT, whole | {"prompt": USER["content"]}) == expected

    def test_several_turns(self) -> None:
        thanks, welcome, bye = (
            {"role": role, "content": text}
            for role, text in (("user", "Thanks!"), ("assistant", "You are welcome."), ("assistant", "Bye."))
        )
        rendered = render(CHAT, {"chosen": [USER, BLUE, thanks, welcome], "rejected": [USER, BLUE, thanks, bye]})
        assert rendered.prompt.endswith("Thanks!<|im_end|>\n<|im_start|>assistant\n")
        assert (rendered.chosen, rendered.rejected) == ("You are welcome.<|im_end|>", "Bye.<|im_end|>")
        # Conversations that part earlier: the responses hold several turns.
        rendered = render(CHAT, {"chosen": [USER, BLUE, thanks, welcome], "rejected": [USER, GREEN]})
        assert rendered.chosen == (
            "It is blue.<|im_end|>\n<|im_start|>user\nThanks!<|im_end|>\n<|im_start|>assistant\n"
            "You are welcome.<|im_end|>"
        )

    def test_columns_of_other_names(self) -> None:
        row = {"question": "The sky is", "good": " blue.", "bad": " green.", "prompt": 3}
        rendered = render(PLAIN, row, columns=Columns("question", "good", "bad"))
        assert rendered[:3] == ("The sky is", " blue.", " green.")

    def test_further_columns_do_not_matter(self) -> None:
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        assert render(PLAIN, row | {"score": None, "messages": [{}], "id": "\ud800"}) == render(PLAIN, row)


class TestImplicitPrompt:
    """The longest common beginning."""

    def test_a_space_before_the_difference_belongs_to_the_responses(self) -> None:
        rendered = render(PLAIN, {"chosen": "It is blue", "rejected": "It is green"})
        assert rendered[:3] == ("It is", " blue", " green")

    @given(st.text("ab \n", min_size=1), st.text("ab "), st.text("ab "))
    def test_is_trls(self, prompt: str, chosen: str, rejected: str) -> None:
        row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
        try:
            rendered = render(PLAIN, row)
        except SetAside:
            return
        assert rendered[:3] == tuple(extract_prompt(row).values())


class TestEndOfTurn:
    """A response ends in the end-of-turn token, once, with nothing after it."""

    @pytest.mark.parametrize(
        "ending",
        ["{{ message['content'] }}<|im_end|>", "{{ message['content'] }}<|im_end|>\n  ", "{{ message['content'] }}"],
    )
    def test_whatever_the_template_writes_there(self, ending: str) -> None:
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = (
            f"{{% for message in messages %}}[{{{{ message['role'] }}}}]{ending}{{% endfor %}}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
        rendered = render(tokenizer, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]})
        assert (rendered.chosen, rendered.rejected) == ("It is blue.<|im_end|>", "It is green.<|im_end|>")

    def test_typed_bos_and_eos_are_not_doubled(self) -> None:
        plain = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
        typed = {"prompt": "<s>The sky is", "chosen": " blue.</s>", "rejected": " green."}
        assert render(PLAIN, typed) == render(PLAIN, plain)
        implicit = {"chosen": "<s>The sky is blue.</s>", "rejected": "<s>The sky is green.</s>"}
        assert render(PLAIN, implicit) == render(PLAIN, plain)


class TestTemplates:
    """Chat templates are other people's code."""

    def test_one_that_writes_a_past_turn_otherwise(self) -> None:
        """The generation prompt opens a thought that a finished turn does not have (as Qwen3's does)."""
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>{% endif")
        rendered = render(tokenizer, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]})
        assert rendered == render(CHAT, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]})

    @pytest.mark.parametrize(
        "code", ["raise_exception('no')", "1 / 0", "messages[0].content + 1", "messages[0].nothing.more", "'a'.join(3)"]
    )
    def test_one_that_fails(self, code: str) -> None:
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = "{{ " + code + " }}" + CHAT_TEMPLATE
        verdict = set_aside(tokenizer, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]})
        assert verdict.reason == Reason.TEMPLATE

    def test_one_that_writes_other_fields_of_a_message(self) -> None:
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = "{{ messages[0]['name'] }}" + CHAT_TEMPLATE
        row = {"prompt": [USER | {"name": "\ud800"}], "chosen": [BLUE], "rejected": [GREEN]}
        assert set_aside(tokenizer, row).reason == Reason.LONE_SURROGATE

    @pytest.mark.parametrize("code", ["'a' * 10**11", "'a' * 2 * 10**6"])
    def test_one_that_writes_without_end_stops_the_run(self, code: str) -> None:
        """It would take as long for every row."""
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = "{{ " + code + " }}" + CHAT_TEMPLATE
        with pytest.raises(ModelError, match=r"the chat template takes .* for one conversation"):
            render(tokenizer, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]})

    @pytest.mark.parametrize("code", ["''.__class__.__mro__[1].__subclasses__()", "messages.append(3)"])
    def test_one_that_reaches_out_of_its_sandbox(self, code: str) -> None:
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = "{{ " + code + " }}" + CHAT_TEMPLATE
        row = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
        assert set_aside(tokenizer, row).reason == Reason.TEMPLATE

    def test_one_that_drops_the_difference(self) -> None:
        """Then both responses are the same text; their ids tell (see test_tokenization)."""
        tokenizer = make_tokenizer(chat=True)
        tokenizer.chat_template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
        row = {"prompt": [USER], "chosen": [BLUE], "rejected": [BLUE | {"content": " It is blue. "}]}
        rendered = render(tokenizer, row)
        assert rendered.chosen == rendered.rejected


class TestControlTokens:
    """Typed into a text, they would be read as the real ones."""

    def test_set_a_row_aside(self) -> None:
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        for name in row:
            verdict = set_aside(PLAIN, row | {name: "x<pad>y"})
            assert (verdict.reason, verdict.detail) == (Reason.CONTROL_TOKEN, f"<pad> in {name}")

    def test_in_messages_too(self) -> None:
        row = {"prompt": [USER], "chosen": [BLUE | {"content": "Hi<|im_end|>"}], "rejected": [GREEN]}
        verdict = set_aside(CHAT, row)
        assert (verdict.reason, verdict.detail) == (Reason.CONTROL_TOKEN, "<|im_end|> in chosen[0]")

    @pytest.mark.parametrize("ending", ["<|im_end|>\n", "<|im_end|>", ""])
    def test_are_kept_by_flag_for_text_that_was_rendered_beforehand(self, ending: str) -> None:
        messages = render(CHAT, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]})
        row = {"prompt": messages.prompt, "chosen": f"It is blue.{ending}", "rejected": f"It is green.{ending}"}
        rendered = render(CHAT, row, allow_control_tokens=True)
        assert rendered[:3] == messages[:3]
        assert not rendered.add_eos


CHAT_ROW = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
TEXT_ROW = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
WITHOUT_PROMPT = {"chosen": "The sky is blue.", "rejected": "The sky is green."}


class TestSetAside:
    """What the command line's tests of bad input leave out."""

    @pytest.mark.parametrize("row", [WITHOUT_PROMPT, WITHOUT_PROMPT | {"prompt": None}])
    def test_a_row_that_lost_its_prompt_does_not_get_one_from_its_responses(self, row: dict[str, Any]) -> None:
        reason = Reason.NOT_TEXT if "prompt" in row else Reason.MISSING_FIELD
        assert set_aside(PLAIN, row, after=TEXT_ROW).reason == reason

    @pytest.mark.parametrize("role", [None, "", "User", "human", 3, ["user"], {"user": 1}])
    def test_roles(self, role: Any) -> None:
        verdict = set_aside(CHAT, CHAT_ROW | {"chosen": [{"role": role, "content": "hi"}]})
        assert (verdict.reason, verdict.detail) == (Reason.BAD_MESSAGE, "chosen[0] has an unknown role")

    @pytest.mark.parametrize("message", ["hi", None, 3, [], {}, {"role": "assistant"}, {"content": "hi"}])
    def test_messages(self, message: Any) -> None:
        assert set_aside(CHAT, CHAT_ROW | {"rejected": [message]}).reason == Reason.BAD_MESSAGE

    @pytest.mark.parametrize("content", [None, 3, [], [{"type": "image"}], [{"type": "text", "text": None}], ["hi"]])
    def test_contents(self, content: Any) -> None:
        row = CHAT_ROW | {"prompt": [USER | {"content": content}]}
        assert set_aside(CHAT, row).reason == Reason.NOT_TEXT

    def test_one_response_of_text_and_one_of_messages(self) -> None:
        assert set_aside(CHAT, CHAT_ROW | {"chosen": "It is blue."}).reason == Reason.NOT_TEXT

    def test_conversations_without_a_common_message(self) -> None:
        row = {"chosen": [BLUE], "rejected": [GREEN]}
        assert set_aside(CHAT, row).reason == Reason.NO_COMMON_PREFIX
        # A text prompt beside responses alone is not a conversation's first message.
        assert set_aside(CHAT, row | {"prompt": "What color is the sky?"}).reason == Reason.NO_COMMON_PREFIX

    def test_a_prompt_without_messages(self) -> None:
        assert set_aside(CHAT, CHAT_ROW | {"prompt": []}).reason == Reason.EMPTY_PROMPT


def test_text_that_no_model_reads() -> None:
    text = "a" * (MAX_CHARACTERS + 1)
    for tokenizer, row in (
        (PLAIN, {"prompt": "a", "chosen": text, "rejected": "b"}),
        (CHAT, {"prompt": [USER], "chosen": [BLUE | {"content": text}], "rejected": [GREEN]}),
    ):
        verdict = set_aside(tokenizer, row)
        assert (verdict.reason, verdict.detail[:20]) == (Reason.TOO_LONG, "10000001 characters ")


class TestNotes:
    """Columns that a template could read are named."""

    @staticmethod
    def notes(row: dict[str, Any], template: str | None) -> list[str]:
        rows = renderer(tokenizer_of(template))
        assert rows.notes == []
        rows.render(Row(0, row))
        return rows.notes

    def test_of_columns_that_are_given_to_it(self) -> None:
        row = CHAT_ROW | {"tools": [{"type": "function"}], "chat_template_kwargs": {}, "id": 3}
        assert self.notes(row, "tools") == ["columns tools, chat_template_kwargs: given to the chat template"]
        assert self.notes(CHAT_ROW, "tools") == []

    def test_of_columns_that_are_called_like_its_variables(self) -> None:
        for template, column in (("tools", "enable_thinking"), ("locale", "locale"), ("generation tags", "bos_token")):
            (note,) = self.notes(CHAT_ROW | {column: "x", "messages": []}, template)
            assert f"column {column} (" in note

    def test_of_plain_text(self) -> None:
        assert self.notes(TEXT_ROW | {"tools": []}, None) == ["column tools: not used, the rows are plain text"]


def test_what_a_template_says_is_its_own_and_not_the_rows() -> None:
    """Row text is in no message."""
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('Unknown words: ' + messages[0].content) }}"
    assert set_aside(tokenizer, CHAT_ROW).detail == "Unknown words:"
    tokenizer.chat_template = "{{ raise_exception(messages[0].content) }}"
    assert set_aside(tokenizer, CHAT_ROW).detail == "TemplateError"
    tokenizer.chat_template = "{{ messages[0].nothing.more }}"
    assert set_aside(tokenizer, CHAT_ROW).detail == "'dict object' has no attribute 'nothing'"
    tokenizer.chat_template = "{{ messages[0][messages[0].content].more }}"
    assert set_aside(tokenizer, CHAT_ROW).detail == "UndefinedError"


class TestWholeSet:
    """What makes a whole set unusable stops at once."""

    def test_missing_column(self) -> None:
        with pytest.raises(DataError, match=r"'chosen' is missing.*prompt, choosen, rejected.*--chosen-column choosen"):
            render(PLAIN, {"prompt": "a", "choosen": "b", "rejected": "c"})
        with pytest.raises(DataError, match=r"--prompt-column question.*prompt, chosen, rejected"):
            render(PLAIN, TEXT_ROW, columns=Columns("question"))

    def test_two_forms(self) -> None:
        rows = renderer(CHAT)
        rows.render(Row(0, CHAT_ROW))
        assert rows.form.conversational
        with pytest.raises(DataError, match=r"row 0 is conversational, row 7 is standard"):
            rows.render(Row(7, TEXT_ROW))

    def test_messages_without_a_template(self) -> None:
        with pytest.raises(DataError, match="no chat template"):
            render(PLAIN, CHAT_ROW)
