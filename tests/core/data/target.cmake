# These tests open the built plugins.
add_dependencies(test_data data_text data_tokens data_synthetic tokenizer_bytes tokenizer_bpe)
