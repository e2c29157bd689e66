# These tests train with the built plugins.
add_dependencies(test_strategies attention_mha feed_forward_swiglu feed_forward_moe position_rope
  optimizer_adamw optimizer_muon strategy_single strategy_data_parallel)
set_tests_properties(core.strategies PROPERTIES LABELS "unit;strategies" TIMEOUT 1800)
