"""Sources into records: files found, bytes decoded, JSON and CSV taken apart. Nothing is interpreted.

Owns encodings (a byte that does not fit is named with its row and its offset in the file), delimiters and
line numbers. A row that cannot be read is handed on as ``Bad`` with its number; what happens to it is decided
by the caller. Raises ``BadRecipe`` for a file that is not there and ``BadData`` for one that holds no rows.

CSV as in RFC 4180, with the delimiter of the header line (comma, semicolon, tab or bar).
"""

import codecs
import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.errors import BadData
from compile.recipe.data import DataSource
from compile.recipe.sections import Source, there
from models import canonical
from models.digest import Digest
from models.errors import ModelsError
from models.store import digest_of

_DELIMITERS = ",;\t|"
_MAX_CELL = 1 << 24
"""Characters; a forgotten quote would otherwise swallow the file at csv's limit of 131,072 with a riddle."""


@dataclass(frozen=True)
class Record:
    """One row as it stands in the source. ``file`` is empty where there is but one."""

    number: int
    values: Mapping[str, Any]
    file: str = ""

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return _place(self.file, self.number)


@dataclass(frozen=True)
class Bad:
    """A row that cannot be used, and why."""

    number: int
    reason: str
    file: str = ""

    def __str__(self) -> str:
        return f"{_place(self.file, self.number)}: {self.reason}"


def source_files(source: DataSource, beside: Path) -> dict[str, Path]:
    """Every file or folder that the section names, by its key. Raises ``BadRecipe``."""
    found: dict[str, Path] = {}
    if source.files is not None:
        for label, file in source.files.items():
            key = f"data.files.{label}"
            found[key] = Source(package=source.package, file=file, made_by=source.made_by).find(beside, key)
    elif source.file is not None:
        one = Source(package=source.package, file=source.file, made_by=source.made_by)
        found["data.file"] = one.find(beside, "data")
    else:
        found["data.path"] = there(beside / (source.path or ""), "data.path", source.made_by)
    if source.augment is not None:
        for name in ("synonyms", "templates"):
            if (file := getattr(source.augment, name)) is not None:
                found[f"data.augment.{name}"] = there(beside / file, f"data.augment.{name}", None)
    return found


def source_digest(source: DataSource, beside: Path) -> Digest:
    """Of the names and bytes of every file that the section names. Raises ``BadRecipe``."""
    digests = {key: digest_of(path) for key, path in source_files(source, beside).items()}
    return Digest.of(canonical.encode(digests))


def read_records(source: DataSource, beside: Path) -> tuple[list[Record], list[Bad]]:
    """All rows of the source, and those that cannot be read."""
    files = {key: path for key, path in source_files(source, beside).items() if ".augment." not in key}
    records: list[Record] = []
    bad: list[Bad] = []
    try:
        for one in _walk(source, files):
            (bad if isinstance(one, Bad) else records).append(one)  # type: ignore[arg-type]
    except OSError as error:
        raise BadData(f"the data cannot be read: {error}") from error
    if not records and not bad:
        raise BadData(f"{', '.join(map(str, files.values()))}: no rows")
    return records, bad


def _walk(source: DataSource, files: Mapping[str, Path]) -> Iterator[Record | Bad]:
    if source.files is not None:
        for label, path in zip(source.files, files.values(), strict=True):
            yield from _labelled(source, label, path)
        return
    path = next(iter(files.values()))
    if path.is_dir():
        folders = sorted(one for one in path.iterdir() if one.is_dir())
        if len(folders) < 2:
            raise BadData(f"{path}: a folder of labelled texts has a sub-folder for each label")
        for folder in folders:
            yield from _labelled(source, folder.name, folder)
        return
    data = path.read_bytes()
    kind = _format(source, path, data)
    if kind == "csv":
        yield from _csv(data, source.encoding)
    elif kind == "json":
        yield from _json(data, source.encoding)
    else:
        yield from _jsonl(data, source.encoding)


def _format(source: DataSource, path: Path, data: bytes) -> str:
    if source.format != "auto":
        return source.format
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    return "json" if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") else "jsonl"


def _labelled(source: DataSource, label: str, path: Path) -> Iterator[Record | Bad]:
    """A text a line of a file, or a text a file of a folder."""
    text = source.columns.get("text", "text")
    mark = source.columns.get("label", "label")
    if path.is_file():
        for number, line in _lines(path.read_bytes(), source.encoding):
            if isinstance(line, Bad):
                yield Bad(number, line.reason, path.name)
            elif line.strip():
                yield Record(number, {text: line, mark: label}, path.name)
        return
    for file in sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith(".")):
        name = str(Path(path.name) / file.relative_to(path))
        whole = _decode(file.read_bytes(), source.encoding, 0)
        if isinstance(whole, str):
            yield Record(1, {text: whole, mark: label}, name)
        else:
            yield Bad(1, whole.reason, name)


def _jsonl(data: bytes, encoding: str) -> Iterator[Record | Bad]:
    for number, line in _lines(data, encoding):
        if isinstance(line, Bad):
            yield line
        elif line.strip():
            yield _object(number, line)


def _object(number: int, line: str) -> Record | Bad:
    try:
        value = canonical.decode(line.encode("utf-8", "surrogatepass"))
    except ModelsError as error:
        return Bad(number, str(error))
    return Record(number, value) if isinstance(value, dict) else Bad(number, "not a JSON object")


def _json(data: bytes, encoding: str) -> Iterator[Record | Bad]:
    """One array of objects; the number of a row is its place in it."""
    text = _decode(data, encoding, 0)
    if isinstance(text, Bad):
        raise BadData(text.reason)
    try:
        rows = canonical.decode(text.encode("utf-8", "surrogatepass"))
    except ModelsError as error:
        raise BadData(f"the data: {error}") from error
    if not isinstance(rows, list):
        raise BadData("the data: a JSON file holds an array of objects; with one object a line it is jsonl")
    for number, row in enumerate(rows, start=1):
        yield Record(number, row) if isinstance(row, dict) else Bad(number, "not a JSON object")


def _csv(data: bytes, encoding: str) -> Iterator[Record | Bad]:
    lines: list[str] = []
    broken: dict[int, Bad] = {}
    for number, line in _lines(data, encoding, keep_ends=True):
        if isinstance(line, Bad):
            broken[number] = line
            line = "\n"
        lines.append(line)
    if not lines or not lines[0].strip():
        raise BadData("row 1: a CSV file begins with a line of column names")
    if 1 in broken:
        raise BadData(str(broken[1]))
    delimiter = max(_DELIMITERS, key=lines[0].count)
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(reader)]
    if len(set(header)) != len(header):
        raise BadData("row 1: two columns have the same name")
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if reader.line_num == len(lines) and reader.line_num > number:
                raise BadData(f"row {number}: a quote is opened that no later row closes") from error
            yield Bad(number, f"not CSV: {error}")
            continue
        spoilt = next((broken[at] for at in range(number, reader.line_num + 1) if at in broken), None)
        if spoilt is not None:
            yield spoilt
        elif not any(cell.strip() for cell in cells):
            continue
        elif len(cells) != len(header):
            yield Bad(number, f"{len(cells)} cells where the header has {len(header)}")
        else:
            yield Record(number, dict(zip(header, cells, strict=True)))


def _lines(data: bytes, encoding: str, keep_ends: bool = False) -> Iterator[tuple[int, str | Bad]]:
    """Lines with their numbers, each decoded alone, so that one bad byte costs one row."""
    start = 0
    if encoding in ("utf-8", "utf-8-sig") and data.startswith(codecs.BOM_UTF8):
        start = len(codecs.BOM_UTF8)
    if encoding.startswith(("utf-16", "utf-32")):
        # A line feed is several bytes here: decode first, then take apart.
        text = _decode(data, encoding, 0)
        if isinstance(text, Bad):
            raise BadData(text.reason)
        yield from enumerate(io.StringIO(text, newline="" if keep_ends else None), start=1)
        return
    for number, line in enumerate(data[start:].splitlines(keepends=True), start=1):
        decoded = _decode(line if keep_ends else line.rstrip(b"\r\n"), encoding, start)
        yield number, Bad(number, decoded.reason) if isinstance(decoded, Bad) else decoded
        start += len(line)


def _decode(data: bytes, encoding: str, offset: int) -> str | Bad:
    try:
        return data.decode("utf-8" if encoding == "utf-8-sig" else encoding)
    except UnicodeDecodeError as error:
        at = offset + error.start
        return Bad(1, f"byte 0x{data[error.start]:02x} at offset {at} of the file is not {encoding}")


def _place(file: str, number: int) -> str:
    return f"{file} row {number}" if file else f"row {number}"
