// A library that only the fixture `private` uses.
extern "C" double dsv3_private_number() {
  return 0.5;
}
