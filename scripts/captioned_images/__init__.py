"""What images with captions and exact attributes have in common: attributes, captions, tokenizer, data."""
