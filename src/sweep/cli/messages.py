"""Error messages of the command line."""

from __future__ import annotations

from sweep.console import streams
from sweep.errors import ConfigError
from sweep.util.redaction import redact

MAX_MESSAGE, MAX_LINES = 380, 3  # characters and lines of a message about a wrong configuration
CONFIG_ERROR = ConfigError.exit_code


def format_error(message: str, code: int) -> str:
    """Return an error message for the terminal: without secrets, and shortened if the configuration was refused."""
    message = redact(message)
    if code == CONFIG_ERROR:  # messages of libraries and names typed by users can have any length
        message = "\n".join(message.splitlines()[:MAX_LINES])
        message = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 2]} …"
    return streams.visible(f"sweep: {message}")
