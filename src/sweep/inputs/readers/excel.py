"""Excel workbooks, by openpyxl (extra `excel`)."""

from __future__ import annotations

import datetime
import zipfile
from typing import Any, BinaryIO

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.readers.base import Entries, register_reader
from sweep.inputs.readers.delimited import cell
from sweep.inputs.relevance import is_relevant
from sweep.util.validators import did_you_mean

MAX_BYTES = 2**30  # maximum bytes of a workbook without compression
MAX_EMPTY = 100_000  # maximum empty rows; those that a file omits cost it nothing


@register_reader(".xlsx", ".xlsm")
def read_excel(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    """Yield the rows of a sheet, whose first row names the columns. Formulas give their stored results.

    Raises:
        ConfigError: not a workbook, no sheet or several, cells without a column, or a formula without a stored result.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise ConfigError(f"{name}: Excel files need the package openpyxl: pip install '.[excel]'.") from error
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise ConfigError(
                f"{name}: is larger than {MAX_BYTES // 2**20} MiB without compression. Write it as .jsonl."
            )
        book = load_workbook(file, read_only=True, data_only=True)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # else rows are padded to the declared size, whatever it is
    except ConfigError:
        raise
    except Exception as error:  # openpyxl raises what its parsers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{name}: not an Excel workbook: {reason}.") from error
    formulas = load_workbook(file, read_only=True)
    try:
        sheet = _sheet(book, name, config)
        formulas[sheet.title].reset_dimensions()
        yield from _rows(sheet, formulas[sheet.title], name, config)
    finally:
        book.close()
        formulas.close()


def _sheet(book: Any, name: str, config: PromptsConfig) -> Any:
    names = [sheet.title for sheet in book.worksheets]
    if config.split is not None:
        if config.split not in names:
            raise ConfigError(
                f"prompts.split: {name} has no sheet {config.split!r}. {did_you_mean(config.split, names)}"
            )
        return book[config.split]
    filled = [sheet for sheet in book.worksheets if any(any(v is not None for v in row) for row in _first_rows(sheet))]
    if len(filled) > 1:
        listed = ", ".join(sheet.title for sheet in filled)
        raise ConfigError(f"{name}: has several sheets ({listed}). Set prompts.split to the name of one.")
    if not filled:
        raise ConfigError(f"{name}: all sheets are empty.")
    return filled[0]


def _first_rows(sheet: Any) -> Any:
    return sheet.iter_rows(max_row=2, values_only=True)


def _rows(sheet: Any, formulas: Any, name: str, config: PromptsConfig) -> Entries:
    written = enumerate(formulas.iter_rows(), 1)  # advanced to rows with empty cells only
    header: list[str] = []
    empty = 0
    for number, row in enumerate(sheet.iter_rows(), 1):
        values = [one.value for one in row]
        # A stored result that is an empty text has the type "str".
        if missing := [i for i, one in enumerate(row) if one.value is None and one.data_type != "str"]:
            cells = next((cells for at, cells in written if at == number), ())
            for i in missing:
                relevant = not header or (i < len(header) and is_relevant(header[i], config))
                if relevant and i < len(cells) and cells[i].data_type == "f":
                    raise ConfigError(
                        f"{name}:{number}: the formula in {cells[i].coordinate} has no stored result. Open and save "
                        "the workbook in a spreadsheet program, or write the value."
                    )
        while values and values[-1] is None:
            values.pop()
        if not values:
            empty += 1
            if empty > MAX_EMPTY:
                raise ConfigError(f"{name}:{number}: has more than {MAX_EMPTY:,} empty rows. Remove them.")
            continue
        if not header:
            header = ["" if value is None else str(value) for value in values]
            if "" in header or len(set(header)) < len(header):
                raise ConfigError(f"{name}:{number}: columns must have different names; got {', '.join(header)[:200]}.")
            continue
        place = f"{name}:{number}"
        if len(values) > len(header):
            raise ConfigError(f"{place}: has {len(values)} cells; expected {len(header)}, as in the header.")
        values += [None] * (len(header) - len(values))
        yield str(number), {c: _value(c, v, place, config) for c, v in zip(header, values, strict=True)}


def _value(column: str, value: Any, place: str, config: PromptsConfig) -> Any:
    if isinstance(value, str):
        return cell(column, value, place, config)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        midnight = isinstance(value, datetime.datetime) and value.time() == datetime.time()
        return value.date().isoformat() if isinstance(value, datetime.datetime) and midnight else value.isoformat()
    return value
