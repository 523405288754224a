"""Settings that make a run of seconds out of any recipe."""

TINY = [
    "train.steps=4",
    "train.batch_tokens=256",
    "train.eval_every=2",
    "train.sample_every=2",
    "train.first_sample=1",
    "train.save_every=2",
    "train.compile=false",
    "tokenizer.vocab_size=300",
    "model.context_length=64",
    "model.d_model=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "sampling.max_new_tokens=8",
]
TINY_STORIES = ["corpus.num_train=40", "corpus.num_valid=5"]
