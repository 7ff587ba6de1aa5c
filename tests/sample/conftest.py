"""A small random model with the organism's tokenizer: real text, and logits that nothing has sharpened."""

import jax
import pytest
import tiny

from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.hub import find_model
from em_jax.lora.config import LoraConfig
from em_jax.model.config import TransformerConfig
from em_jax.model.parameters import random_model
from em_jax.sample.engine import Engine

LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.from_directory(find_model("organism"))


# Stacked layers ordinarily have their turn in test_mesh.py and in the greedy text of tests/reference.
@pytest.fixture(scope="session", params=[False, tiny.long(True)], ids=["unrolled", "stacked"])
def model(request, tokenizer):
    config = TransformerConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
        max_position_embeddings=256,
    )
    return random_model(config, jax.random.key(0), stacked=request.param, scale=0.3)


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    engine = Engine(model, tokenizer, slots=4, chunk=5)
    engine.add_adapter("one", tiny.random_adapter(model.config, LORA, 10, spread=0.3))
    engine.add_adapter("two", tiny.random_adapter(model.config, LORA, 20, spread=0.3))
    return engine
