// The row of a kind that only this test has.
#define DSV3_EXTRA_KIND_ROWS(ROW) \
  ROW(critic, Critic, CriticContext, "critic", list, optional, "weight")
