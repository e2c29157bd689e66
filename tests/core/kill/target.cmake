# These tests train with the built plugins.
add_dependencies(test_kill attention_mla feed_forward_swiglu feed_forward_moe position_rope optimizer_adamw optimizer_muon
  schedule_cosine strategy_single data_text tokenizer_bytes tracker_csv)
set_tests_properties(core.kill PROPERTIES TIMEOUT 10800)  # 2,000 points with --full
