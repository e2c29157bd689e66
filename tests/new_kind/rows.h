// The table row for a kind that exists only in this test.
#define DSV3_EXTRA_KIND_ROWS(ROW) \
  ROW(critic, Critic, CriticContext, "critic", list, optional, "weight")
