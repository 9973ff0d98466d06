"""A console for texts that models, editors and users wrote."""

from typing import Any

from rich.console import Console
from rich.text import Text

# Control characters would move the cursor, colour or rename the terminal; they are shown by their Unicode pictures.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class PlainConsole(Console):
    """Shows strings as they are: no markup, no emoji codes, no control sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Overridden: every string that is printed, table cells included, comes through here."""
        return super().render_str(text.translate(PICTURES), **options)
