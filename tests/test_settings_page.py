from __future__ import annotations

import os
from pathlib import Path

from penstock.http.configuration import Settings
from penstock.runtime.settings import markdown

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def test_the_settings_page_states_every_key_with_its_real_default() -> None:
    """``UPDATE_DOCS=1`` writes the page anew."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    made = f"{before}{BEGIN}\n{markdown(Settings)}\n{END}{after}"
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(made)
        page = made
    assert page == made
