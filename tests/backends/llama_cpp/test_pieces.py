"""What stands for a token is known without waiting for others who use the vocabulary."""

from concurrent.futures import ThreadPoolExecutor

import edge_llama
from edge_llama.backends.llama_cpp.tokenizer import GGUFTokenizer


def test_a_known_token_does_not_wait_until_a_text_is_encoded(model: edge_llama.Model) -> None:
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, GGUFTokenizer)
    (token, *_) = tokenizer.encode("Hello")
    piece = tokenizer.piece(token)
    with ThreadPoolExecutor(1) as other, tokenizer._lock:
        assert other.submit(tokenizer.piece, token).result(10) == piece
