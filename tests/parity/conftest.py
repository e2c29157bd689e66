import pytest

WORST = {}


@pytest.fixture(scope="session")
def worst():
    """Record the largest difference for each quantity, such as logits, and report it at the end of the session."""
    def note(kind, value, where):
        if value >= WORST.get(kind, (0, ""))[0]:
            WORST[kind] = (value, where)
        return value
    return note


def pytest_terminal_summary(terminalreporter):
    for kind, (value, where) in WORST.items():
        terminalreporter.write_line(f"largest difference of {kind}: {value:.2e} ({where})")
