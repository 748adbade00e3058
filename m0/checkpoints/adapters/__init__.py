"""LoRA adapters: what they are attached to (`config`), what they compute (`layers`), and peft's files (`peft_format`)."""
