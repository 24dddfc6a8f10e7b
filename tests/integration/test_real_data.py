"""Real preference pairs and a really pretrained model, from file to trained policy."""

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.dataset
import tokenizers
import transformers
from support import CHAT_TEMPLATE, Cli, make_model


def assert_reads_back_everywhere(cache: Path, rows: int) -> pd.DataFrame:
    frame = pd.read_parquet(cache)
    table = pyarrow.dataset.dataset(cache, ignore_prefixes=["_", "."]).to_table()
    loaded = datasets.load_dataset(str(cache), split="train", cache_dir=str(cache.parent / "hf"))
    assert len(frame) == len(table) == len(loaded) == rows
    assert list(loaded["pair_id"]) == table["pair_id"].to_pylist() == list(frame.pair_id)
    for side in ("chosen", "rejected"):
        for score in (f"{side}_rewards", f"{side}_ref_logps"):
            assert [len(x) for x in frame[score]] == [len(x) for x in frame[f"{side}_ids"]]
            assert np.isfinite(np.concatenate(frame[score])).all()
    return frame


def test_chat_pairs(ok: Cli, shared: Path, tmp_path: Path) -> None:
    """300 real conversations; the tokenizer and its chat template are made here."""
    data = shared / "data" / "dpo_en_demo.jsonl"
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        data.read_text().splitlines(),
        tokenizers.trainers.BpeTrainer(vocab_size=4000, special_tokens=special, show_progress=False,
                                       initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    for seed, name in enumerate(("reference", "guidance")):
        make_model(tmp_path / name, tokenizer, seed=seed, max_position_embeddings=4096)
    ok("score", "--dataset", data, "--reference", tmp_path / "reference", "--guidance", tmp_path / "guidance",
       "--output", tmp_path / "cache", "--max-length", 1024, "--max-prompt-length", 512)  # fmt: skip
    frame = assert_reads_back_everywhere(tmp_path / "cache", 300)
    manifest = json.loads((tmp_path / "cache" / "_manifest.json").read_text())
    assert manifest["counts"]["truncated"] == sum(
        not (ids[-1] == tokenizer.eos_token_id and rejected[-1] == tokenizer.eos_token_id and prompt == 0)
        for ids, rejected, prompt in zip(
            frame.chosen_ids,
            frame.rejected_ids,
            [len(tokenizer(text, add_special_tokens=False).input_ids) > 512 for text in frame.prompt],
            strict=True,
        )
    )
    # Whole rows say exactly what the chat template says.
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    row = next(r for r in frame.itertuples() if len(r.prompt_ids) < 400 and r.chosen_ids[-1] == tokenizer.eos_token_id)  # type: ignore[arg-type, index]
    source = rows[row.source_row]  # type: ignore[call-overload]
    expected = tokenizer.apply_chat_template(source["prompt"] + source["chosen"], tokenize=False).rstrip()
    assert tokenizer.decode(np.concatenate([row.prompt_ids, row.chosen_ids])) == expected  # type: ignore[arg-type]
    ok("train", "--cache", tmp_path / "cache", "--model", tmp_path / "reference", "--output", tmp_path / "run",
       "--batch-size", 16, "--max-steps", 3, "--learning-rate", 1e-4)  # fmt: skip
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")


def test_stories(ok: Cli, shared: Path, tmp_path: Path) -> None:
    """2,755 pairs: reference log-probs, a DPO guide, rewards, a TGDPO policy."""
    model, data = shared / "models" / "stories260K", shared / "data" / "stories_train.jsonl"
    ok("score", "--dataset", data, "--reference", model, "--output", tmp_path / "refs")
    train = ("train", "--model", model, "--batch-size", 32, "--max-steps", 12, "--learning-rate", 5e-4,
             "--logging-steps", 4)  # fmt: skip
    ok(*train, "--cache", tmp_path / "refs", "--loss", "dpo", "--output", tmp_path / "guide")
    ok("score", "--dataset", data, "--reference", model, "--guidance", tmp_path / "guide", "--output",
       tmp_path / "cache")  # fmt: skip
    frame = assert_reads_back_everywhere(tmp_path / "cache", 2755)
    ok("verify", tmp_path / "cache")
    margins = [w.sum() - r.sum() for w, r in zip(frame.chosen_rewards, frame.rejected_rewards, strict=True)]
    assert np.mean(np.array(margins) > 0) > 0.6, "a guide trained on these pairs prefers chosen"
    ok(*train, "--cache", tmp_path / "cache", "--output", tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert abs(records[0]["loss"] - math.log(2)) < 1e-5
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["f/min"] < 1 < records[-1]["f/max"]
