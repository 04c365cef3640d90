"""Configuration section `scoring.judge`: a language model that grades answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sweep.util.redaction import is_secret_name, redact
from sweep.util.validators import require, require_choice

PLACEHOLDERS = ("prompt", "reference", "answer")
FORMATS = ("json_schema", "json_object", "none")
PROMPT = """\
Grade the answer to a question.

Question:
{prompt}

Reference answer:
{reference}

Answer to grade:
{answer}

Give a score from 1 (wrong or useless) to 5 (right). Reply with JSON only, such as {"score": 3}."""

_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?(?:/[\w.~/-]*)?")


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """Configuration section `scoring.judge`. It is used if scoring.measures names quality/judge_score.

    Attributes:
        url: Address of a server with OpenAI's API, such as http://127.0.0.1:8000/v1; no user, password or query.
        model: Name of the judge's model on that server.
        prompt: Question to the judge, with {answer} and usually {prompt} and {reference}; it must ask for a score from
            1 to 5 in JSON.
        format: How the server enforces the form of the verdict: json_schema, json_object, or none.
        key_variable: Environment variable with the API key, whose name contains KEY, TOKEN or SECRET; null sends none.
        max_tokens: Longest verdict in tokens; 1 or more.
        timeout: Seconds to wait for one verdict; above 0, at most 1e6.
        patience: Seconds for which failed questions are sent again, for each point; 0 (not again) to 1e6.
        max_in_flight: Questions sent at a time; 1 or more.
    """

    url: str | None = None
    model: str | None = None
    prompt: str = PROMPT
    format: str = "json_schema"
    key_variable: str | None = None
    max_tokens: int = 64
    timeout: float = 60.0
    patience: float = 60.0
    max_in_flight: int = 8

    def __post_init__(self) -> None:
        if self.url is not None:
            rule = "must be an address such as http://127.0.0.1:8000/v1, without user, password or query"
            require(_ADDRESS.fullmatch(self.url) is not None, "scoring.judge.url", rule, redact(self.url))
        require("{answer}" in self.prompt, "scoring.judge.prompt", "must contain {answer}", None)
        require_choice("scoring.judge.format", self.format, FORMATS)
        if self.key_variable is not None:
            rule = "must be the name of an environment variable that contains KEY, TOKEN or SECRET, not the key itself"
            valid = re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_variable) is not None
            require(valid and is_secret_name(self.key_variable), "scoring.judge.key_variable", rule, None)
        require(self.max_tokens >= 1, "scoring.judge.max_tokens", "must be at least 1", self.max_tokens)
        require(0 < self.timeout <= 1e6, "scoring.judge.timeout", "must be above 0 seconds, at most 1e6", self.timeout)
        require(0 <= self.patience <= 1e6, "scoring.judge.patience", "must be 0 to 1e6 seconds", self.patience)
        require(self.max_in_flight >= 1, "scoring.judge.max_in_flight", "must be at least 1", self.max_in_flight)

    @property
    def base_url(self) -> str:
        """The address without a slash at its end."""
        return (self.url or "").rstrip("/")

    def question(self, prompt: str, reference: str, answer: str) -> str:
        """Return the question about one answer. Braces in the texts stay as they are."""
        values = {"prompt": prompt, "reference": reference, "answer": answer}
        pattern = "|".join(f"{{{name}}}" for name in PLACEHOLDERS)
        return re.sub(pattern, lambda match: values[match[0][1:-1]], self.prompt)
