"""Secrets do not leave the process."""

from __future__ import annotations

import html
import json
import logging
import shlex
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import yaml

from sweep.util.redaction import Redact, redact, redact_file

ENVIRONMENT = {
    "HF_TOKEN": "hf_abc123DEF",
    "MLFLOW_TRACKING_PASSWORD": "pa55-word",
    "AWS_SECRET_ACCESS_KEY": "AKIA/12+34==",
    "OPENAI_API_KEY": "sk-1234567",
    "KRB_CREDENTIAL_FILE": "/etc/passwd",
    "OTHER_PASSWORD": "correcthorse",
    "HOME": "/home/someone",
}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg2://me:p@ss:w@host:5432/db?x=1", "postgresql+psycopg2://me:***@host:5432/db?x=1"),
        ("see http://host/x?token=abc&y=1", "see http://host/x?token=***&y=1"),
        ("https://host:5000/path", "https://host:5000/path"),
        ("token hf_abc123DEF, again hf_abc123DEF", "token ***, again ***"),
        ("pa55-word AKIA/12+34== sk-1234567", "*** *** ***"),
        ("/etc/passwd in /home/someone", "/etc/passwd in /home/someone"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("it is correcthorse", "it is ***"),
        ("mail me@host: a://b", "mail me@host: a://b"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, clean: str) -> None:
    assert redact(text, ENVIRONMENT) == clean


ODD = "a\"b\\c'd é/+=&<x>~"
FORMS = {
    "as it is": ODD,
    "repr": repr(ODD)[1:-1],
    "repr in double quotes": ODD.replace("\\", "\\\\"),
    "repr of repr": repr(repr(ODD))[3:-3],
    "JSON": json.dumps(ODD)[1:-1],
    "JSON in UTF-8": json.dumps(ODD, ensure_ascii=False)[1:-1],
    "JSON in JSON": json.dumps(json.dumps(ODD))[3:-3],
    "repr in JSON": json.dumps(repr(ODD))[2:-2],
    "a path": quote(ODD),
    "a query": quote(ODD, safe=""),
    "a form": quote_plus(ODD),
    "a query in small letters": "a%22b%5cc%27d%20%c3%a9%2f%2b%3d%26%3cx%3e~",
    "a query in a query": quote(quote(ODD, safe=""), safe=""),
    "a shell": shlex.quote(ODD)[1:-1],
    "HTML": html.escape(ODD),
    "HTML of Jinja": html.escape(ODD).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    "text of HTML": html.escape(ODD, quote=False),
    "YAML": yaml.safe_dump(ODD, default_style="'", allow_unicode=True).strip()[1:-1],
    "YAML in ASCII": yaml.safe_dump(ODD, default_style='"').strip()[1:-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_secrets_are_masked_however_they_are_written(form: str) -> None:
    assert redact(f"it is <{FORMS[form]}>, again {FORMS[form]}.", {"OTHER_TOKEN": ODD}) == "it is <***>, again ***."


def test_secrets_in_log_records_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("sweep.test")
    log.addFilter(Redact())
    log.warning("cannot reach %s", "http://me:secret@host")
    assert caplog.messages == ["cannot reach http://me:***@host"]


def test_secrets_in_files_are_masked(tmp_path: Path) -> None:
    file = tmp_path / "multirun.yaml"
    file.write_text("uri: postgresql://me:secret@host/db\nname: ü\n")
    redact_file(file)
    assert file.read_text() == "uri: postgresql://me:***@host/db\nname: ü\n"
    redact_file(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["multirun.yaml"]


def test_share_keys_of_pages_are_not_masked() -> None:
    page = "#/experiments/1/runs?orderByKey=metrics.x&viewStateShareKey=abcdef123&api_key=hunter2&key=hunter2"
    assert redact(page, {}) == page.replace("hunter2", "***")


def test_passwords_with_slashes_and_other_names_are_masked() -> None:
    text = "postgresql://u:pa/ss@w0rd@127.0.0.1:1/db http://h/?passwd=x1&pwd=x2&sig=x3 mysql://me:a@h/db"
    masked = "postgresql://u:***@127.0.0.1:1/db http://h/?passwd=***&pwd=***&sig=*** mysql://me:***@h/db"
    assert redact(text, {}) == masked
    assert redact("hunter22", {"MYSQL_PWD": "hunter22"}) == redact("hunter22", {"WANDB_KEY": "hunter22"}) == "***"
