"""Files of others' formats: safetensors and Hugging Face checkpoints, PEFT adapters, chat tokenizers, Orbax state."""
