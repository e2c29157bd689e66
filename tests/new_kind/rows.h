// The row in the kind table for `critic`, a component kind that exists only in this test.
#define DSV3_EXTRA_KIND_ROWS(ROW) \
  ROW(critic, Critic, CriticContext, "critic", list, optional, "weight")
