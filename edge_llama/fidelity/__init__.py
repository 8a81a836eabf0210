"""What a conversion cost: perplexity, KL divergence and top-1 agreement between models. Numpy only, no native code."""
