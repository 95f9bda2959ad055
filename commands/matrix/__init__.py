"""Which method works on which family of timm: one training step and one merge of every method on a small network."""
