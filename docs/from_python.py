"""TGDPO from Python, cell by cell; runs as a script too.

python docs/from_python.py PAIRS REFERENCE GUIDANCE FOLDER
"""

# %% What to train from, and on: preference pairs, the reference, a guidance model
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from tgdpo import ScoreConfig, TGDPOConfig, TGDPOTrainer, score

pairs, reference, guidance, folder = sys.argv[1:]

# %% Score once
cache = str(Path(folder) / "cache")
score(ScoreConfig(dataset=pairs, reference=reference, guidance=guidance, output=cache))

# %% Train as often as you like
model = AutoModelForCausalLM.from_pretrained(reference)
tokenizer = AutoTokenizer.from_pretrained(reference)
trainer = TGDPOTrainer(
    model=model,
    args=TGDPOConfig(
        output_dir=str(Path(folder) / "policy"),
        beta=0.1,
        alpha=0.5,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        logging_steps=1,
        report_to="none",
    ),
    train_dataset=cache,
    processing_class=tokenizer,
)
print(trainer.train())

# %% What was logged
for record in trainer.state.log_history:
    print(record["step"], record["loss"], record["rewards/margins"])

# %% The model was trained in place, and is saved in the output folder
inputs = tokenizer("The blue fox said:", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]))
