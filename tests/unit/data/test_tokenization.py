"""Token ids: what the tokenizer gives for the whole text, split where the prompt's text ends."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from corpus.templates import tokenizer_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import make_tokenizer
from trl.data_utils import common_prefix_length

from tgdpo.data.rendering import Reason, Rendered, SetAside
from tgdpo.data.tokenization import (
    LengthLimits,
    PairTokenizer,
    TokenizedPair,
    adds_bos,
    begin_of_text,
    chat_template_hash,
    control_tokens,
    require_usable,
    tokenizer_hash,
    vocabulary_hash,
)
from tgdpo.errors import ModelError


def sentencepiece_like() -> Any:
    """As Llama 2's: a space in front, spaces as "▁", bytes for unknown characters, and NFKC, which changes lengths."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    pieces += [
        (piece, -float(n)) for n, piece in enumerate(["▁", "▁the", "▁sky", "▁is", "is", "s", "a", "b", "fi", "▁a"])
    ]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {"bpe": make_tokenizer(chat=False), "chat": make_tokenizer(chat=True), "metaspace": sentencepiece_like()}

texts = st.text(max_size=30) | st.text("the sky is\n ab", max_size=30)
any_tokenizer = st.sampled_from(sorted(TOKENIZERS)).map(TOKENIZERS.__getitem__)


def encode(tokenizer: Any, text: Rendered, **limits: Any) -> TokenizedPair | SetAside:
    return PairTokenizer(tokenizer, LengthLimits(**limits)).encode([text])[0]


def encoded(tokenizer: Any, text: Rendered, **limits: Any) -> TokenizedPair:
    result = encode(tokenizer, text, **limits)
    assert isinstance(result, TokenizedPair), result
    return result


def plain(prompt: str, chosen: str, rejected: str) -> Rendered:
    return Rendered(prompt, chosen, rejected, add_bos=True, add_eos=True)


class TestSplit:
    """Prompt and response together are the ids of the whole text."""

    @given(any_tokenizer, texts, texts, texts, st.booleans(), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_keeps_the_ids_of_the_whole_text(
        self, tokenizer: Any, prompt: str, chosen: str, rejected: str, add_bos: bool, add_eos: bool
    ) -> None:
        result = encode(tokenizer, Rendered(prompt, chosen, rejected, add_bos, add_eos))
        bos = [tokenizer.bos_token_id] if add_bos and adds_bos(tokenizer) else []
        eos = [tokenizer.eos_token_id] if add_eos else []
        whole = [
            bos + tokenizer(prompt + response, add_special_tokens=False).input_ids + eos
            for response in (chosen, rejected)
        ]
        if isinstance(result, SetAside):
            assert result.reason in (Reason.SAME_RESPONSES, Reason.EMPTY_PROMPT)
            assert result.reason == Reason.EMPTY_PROMPT or whole[0] == whole[1]
            return
        ids = result.ids
        assert [[*ids.prompt, *ids.chosen], [*ids.prompt, *ids.rejected]] == whole
        assert {part.dtype for part in ids} == {np.dtype(np.int32)}
        assert not result.truncated

    @given(texts, texts, texts)
    @settings(max_examples=200, deadline=None)
    def test_is_at_the_last_token_boundary_inside_the_prompt(self, prompt: str, chosen: str, rejected: str) -> None:
        tokenizer = TOKENIZERS["bpe"]
        result = encode(tokenizer, plain(prompt, chosen, rejected))
        assume(isinstance(result, TokenizedPair))
        assert isinstance(result, TokenizedPair)
        # A character of a byte-level token is a byte, so lengths say which tokens lie inside the prompt.
        tokens = [tokenizer.tokenize(prompt + response) for response in (chosen, rejected)]
        inside = [sum(end <= len(prompt.encode()) for end in np.cumsum([len(t) for t in row])) for row in tokens]
        assert len(result.ids.prompt) == 1 + min(*inside, common_prefix_length(*tokens))

    words = st.lists(
        st.sampled_from(["The", "quick", "fox", "said:", "sky,", "blue!", "new", "Ünïcode", "😀", "12345"]),
        min_size=1,
    )

    @given(words, words, words, st.sampled_from(["bpe", "chat"]))
    @settings(deadline=None)
    def test_is_trls_on_ordinary_text(
        self, prompt: list[str], chosen: list[str], rejected: list[str], name: str
    ) -> None:
        """TRL 1.16: the response starts where the prompt's own ids and those of the whole text part."""
        assume(chosen != rejected)
        tokenizer = TOKENIZERS[name]
        text = plain(" ".join(prompt), *(f" {' '.join(words)}" for words in (chosen, rejected)))
        ids = encoded(tokenizer, text).ids
        alone = tokenizer(text.prompt).input_ids
        joint = [tokenizer(text.prompt + response + tokenizer.eos_token).input_ids for response in text[1:3]]
        length = min(common_prefix_length(alone, whole) for whole in joint)
        assert ids.prompt.tolist() == alone[:length]
        assert [ids.chosen.tolist(), ids.rejected.tolist()] == [whole[length:] for whole in joint]

    def test_gives_a_token_over_the_boundary_to_the_response(self) -> None:
        tokenizer = TOKENIZERS["bpe"]
        assert tokenizer.tokenize("The sky") == ["The", "Ġsky"]
        ids = encoded(tokenizer, plain("The s", "ky", "ea")).ids
        assert tokenizer.convert_ids_to_tokens(ids.prompt) == ["<s>", "The"]
        assert tokenizer.convert_ids_to_tokens(ids.chosen) == ["Ġsky", "</s>"]

    def test_goes_back_to_where_both_responses_give_the_prompt_the_same_tokens(self) -> None:
        """As many tokens lie inside the prompt with either response, and they are others."""
        pieces = ["<s>", "</s>", "a", "b", "x", "y", "bx", "ab"]
        model = tokenizers.models.BPE({piece: n for n, piece in enumerate(pieces)}, [("b", "x"), ("a", "b")])
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(model), bos_token="<s>", eos_token="</s>"
        )
        assert [tokenizer.tokenize(f"aab{response}") for response in "xy"] == [["a", "a", "bx"], ["a", "ab", "y"]]
        ids = encoded(tokenizer, Rendered("aab", "x", "y", add_bos=False, add_eos=True)).ids
        assert [tokenizer.convert_ids_to_tokens(part) for part in ids] == [
            ["a"], ["a", "bx", "</s>"], ["ab", "y", "</s>"]
        ]  # fmt: skip

    def test_a_batch_gives_what_its_pairs_give_alone(self) -> None:
        pairs = [plain("a" * n, " the sky", " is" if n % 3 else " the sky") for n in range(1, 9)]
        together = PairTokenizer(TOKENIZERS["bpe"], LengthLimits()).encode(pairs)
        for pair, result in zip(pairs, together, strict=True):
            alone = encode(TOKENIZERS["bpe"], pair)
            assert type(result) is type(alone)
            if isinstance(result, TokenizedPair) and isinstance(alone, TokenizedPair):
                assert all(np.array_equal(*both) for both in zip(result.ids, alone.ids, strict=True))
        assert PairTokenizer(TOKENIZERS["bpe"], LengthLimits()).encode([]) == []

    def test_text_rendered_beforehand_gives_the_ids_of_its_messages(self) -> None:
        text = "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello!<|im_end|>", "Go away.<|im_end|>"
        tokenizer = TOKENIZERS["chat"]
        by_template = encoded(tokenizer, Rendered(*text, add_bos=False, add_eos=False)).ids
        by_hand = encoded(tokenizer, Rendered(*text, add_bos=True, add_eos=False)).ids
        for one, other in zip(by_template, by_hand, strict=True):
            assert np.array_equal(one, other)
        assert by_template.chosen[-1] == tokenizer.eos_token_id
        assert by_template.prompt.tolist().count(tokenizer.bos_token_id) == 1

    def test_responses_that_differ_in_text_alone_are_the_same(self) -> None:
        result = encode(TOKENIZERS["metaspace"], plain("a", "ﬁ", "fi"))  # NFKC writes the ligature as two letters
        assert isinstance(result, SetAside)
        assert result.reason == Reason.SAME_RESPONSES


class TestBeginOfText:
    """Prompts begin as the tokenizer begins a text."""

    TWO = tokenizer_of("two")

    def test_with_its_own_tokens(self) -> None:
        ids = encoded(self.TWO, plain("The sky", " is blue", " is")).ids
        assert ids.prompt.tolist() == self.TWO("The sky").input_ids
        assert self.TWO.convert_ids_to_tokens(ids.prompt[:2]) == ["<pad>", "<|im_start|>"]

    def test_which_stay_where_prompts_are_cut(self) -> None:
        text = plain("abcdefgh", " x", " y")
        whole, cut = encoded(self.TWO, text).ids.prompt, encoded(self.TWO, text, max_prompt_length=4).ids.prompt
        assert cut.tolist() == [*whole[:2], *whole[-2:]]
        verdict = encode(self.TWO, text, max_prompt_length=1)
        assert isinstance(verdict, SetAside)
        assert verdict.reason == Reason.PROMPT_TOO_LONG

    def test_is_part_of_the_tokenizers_hash(self) -> None:
        """Before, nothing was put there, under the hash that a tokenizer without such tokens has."""
        assert begin_of_text(self.TWO) == [0, 3]
        assert {name: begin_of_text(each) for name, each in TOKENIZERS.items()} == {
            "bpe": [1], "chat": [], "metaspace": [1]
        }  # fmt: skip
        parts = [self.TWO.backend_tokenizer.to_str(), None, self.TWO.eos_token_id, False]
        assert tokenizer_hash(self.TWO) != hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        parts = [TOKENIZERS["bpe"].backend_tokenizer.to_str(), 1, 2, True]
        assert tokenizer_hash(TOKENIZERS["bpe"]) == hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def test_that_cannot_be_told_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = make_tokenizer(chat=False)
        real = type(tokenizer).__call__

        def mixed(self: Any, text: Any, **options: Any) -> Any:
            found = real(self, text, **options)
            return found if options else transformers.BatchEncoding({"input_ids": [9, 9]})

        monkeypatch.setattr(type(tokenizer), "__call__", mixed)
        with pytest.raises(ModelError, match="how the tokenizer begins a text cannot be told"):
            encode(tokenizer, plain("a", "b", "c"))
        assert isinstance(encode(tokenizer, Rendered("a", "b", "c", add_bos=False, add_eos=True)), TokenizedPair)


class TestMarks:
    """A mark of a turn is the prompt's, whatever white space it takes."""

    @pytest.mark.parametrize("strip", [{"rstrip": True}, {"rstrip": True, "lstrip": True}])
    @pytest.mark.parametrize("begin", ["", " ", "\n\n", " \t "])
    @pytest.mark.parametrize("before", ["", "  "])
    def test_in_front_of_white_space(self, strip: dict[str, bool], begin: str, before: str) -> None:
        tokenizer = make_tokenizer(chat=False)
        tokenizer.add_tokens([tokenizers.AddedToken("<|assistant|>", normalized=False, **strip)], special_tokens=True)
        prompt = f"Hi{before}<|assistant|>\n"
        ids = encoded(tokenizer, plain(prompt, f"{begin}blue", f"{begin}green")).ids
        assert ids.prompt[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
        assert tokenizer.decode(ids.chosen).strip() == "blue</s>"

    def test_that_the_response_writes_is_the_responses(self) -> None:
        tokenizer = make_tokenizer(chat=False)
        tokenizer.add_tokens([tokenizers.AddedToken("<|call|>", rstrip=True, normalized=False)], special_tokens=True)
        ids = encoded(tokenizer, plain("Hi <|", "call|> now", "call|> then")).ids
        assert ids.chosen[0] == tokenizer.convert_tokens_to_ids("<|call|>")


class TestLimits:
    """Cut only when asked for, and a cut response has no end-of-turn token."""

    @given(
        st.sampled_from(["bpe", "chat"]),
        st.text("the sky ab", min_size=1),
        st.text("the sky ab", min_size=1),
        st.text("the sky ab", min_size=1),
        st.none() | st.integers(2, 30),
        st.none() | st.integers(2, 30),
        st.none() | st.integers(2, 40),
        st.sampled_from(["truncate", "set-aside"]),
    )
    @settings(max_examples=300, deadline=None)
    def test_are_held(
        self,
        name: str,
        prompt: str,
        chosen: str,
        rejected: str,
        max_length: int | None,
        max_prompt_length: int | None,
        context: int | None,
        overlong: str,
    ) -> None:
        tokenizer = TOKENIZERS[name]
        text = plain(prompt, chosen, rejected)
        whole = encode(tokenizer, text)
        result = encode(
            tokenizer,
            text,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            context=context,
            overlong=overlong,
        )
        if isinstance(whole, SetAside):
            assert isinstance(result, SetAside)
            return
        longest = len(whole.ids.prompt) + max(len(whole.ids.chosen), len(whole.ids.rejected))
        fits = all(limit is None or longest <= limit for limit in (max_length, context))
        fits &= max_prompt_length is None or len(whole.ids.prompt) <= max_prompt_length
        if isinstance(result, SetAside):
            assert not fits
            return
        assert result.truncated is not fits
        assert fits or overlong == "truncate"
        length = len(result.ids.prompt) + max(len(result.ids.chosen), len(result.ids.rejected))
        assert all(limit is None or length <= limit for limit in (max_length, context))
        assert max_prompt_length is None or len(result.ids.prompt) <= max_prompt_length
        self.check_prompt(result.ids.prompt.tolist(), whole.ids.prompt.tolist(), bos=tokenizer.bos_token_id)
        for cut, full in zip(result.ids[1:], whole.ids[1:], strict=True):
            assert len(cut) > 0
            assert np.array_equal(cut, full[: len(cut)])
            assert (cut[-1] == tokenizer.eos_token_id) == (len(cut) == len(full))

    @staticmethod
    def check_prompt(cut: list[int], full: list[int], *, bos: int) -> None:
        """Cut on the left; BOS stays."""
        if full[0] == bos:
            assert cut[0] == bos
            cut, full = cut[1:], full[1:]
        assert cut == full[len(full) - len(cut) :]

    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            ({"context": 5}, Reason.TOO_LONG),
            ({"max_length": 5}, Reason.PROMPT_TOO_LONG),
            ({"max_length": 20, "overlong": "set-aside"}, Reason.TOO_LONG),
            ({"max_prompt_length": 3, "overlong": "set-aside"}, Reason.PROMPT_TOO_LONG),
        ],
    )
    def test_say_why_and_how_long(self, limits: dict[str, Any], reason: Reason) -> None:
        result = encode(TOKENIZERS["bpe"], plain("abcdefgh", "x" * 30, "y" * 30), **limits)
        assert isinstance(result, SetAside)
        assert result.reason == reason
        assert str(next(iter(limits.values()))) in result.detail

    def test_responses_that_are_the_same_once_cut_are_set_aside(self) -> None:
        result = encode(TOKENIZERS["bpe"], plain("a", "xyzxyz1", "xyzxyz2"), max_length=6)
        assert isinstance(result, SetAside)
        assert result.reason == Reason.SAME_RESPONSES


class TestTokenizers:
    """What is asked of a tokenizer, and when two are the same."""

    def test_bos_is_added_where_the_tokenizer_adds_it(self) -> None:
        assert [adds_bos(tokenizer) for tokenizer in TOKENIZERS.values()] == [True, False, True]

    def test_control_tokens(self) -> None:
        assert control_tokens(TOKENIZERS["chat"]) == ["</s>", "<pad>", "<s>", "<|im_end|>", "<|im_start|>"]

    def test_one_without_eos_is_refused(self) -> None:
        tokenizer = make_tokenizer(chat=False)
        tokenizer.eos_token = None
        with pytest.raises(ModelError, match="EOS"):
            require_usable(tokenizer, "mine")

    def test_one_without_character_offsets_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            require_usable(transformers.ByT5Tokenizer(), "mine")

    def test_hashes_tell_vocabularies_and_templates_apart(self) -> None:
        same, other = make_tokenizer(chat=False), make_tokenizer(chat=False, vocabulary=380)
        ours = TOKENIZERS["bpe"]
        assert (vocabulary_hash(same), tokenizer_hash(same)) == (vocabulary_hash(ours), tokenizer_hash(ours))
        assert vocabulary_hash(other) != vocabulary_hash(ours)
        # Same ids, but BOS is put in front by one of them alone.
        assert tokenizer_hash(TOKENIZERS["chat"]) != tokenizer_hash(ours)
        other_template = make_tokenizer(chat=True)
        other_template.chat_template += " "
        assert chat_template_hash(other_template) != chat_template_hash(TOKENIZERS["chat"])
        assert chat_template_hash(ours) is None
