"""Reading JSON from a file piece by piece, with the bytes at which each value begins and ends."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
_DECODER = json.JSONDecoder()
_NUMBER = re.compile(r"[0-9.eE+-]*")
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_TOKEN = 16
"""Characters; an error that close to the end of what was read may be a word or an escape that goes on."""


class JsonReader:
    """Takes the JSON of a file apart, holding no more than the value at hand and what was read with it.

    Args:
        file: for messages.
        stream: the file, opened for reading bytes.
        max_bytes: size of the largest value that is accepted.
        progress: a tqdm bar that counts bytes, or None.

    Raises:
        ValueError: (every method) not UTF-8, broken JSON (with line and column), nested too deeply, a value too large.
    """

    def __init__(self, file: Path, stream: BinaryIO, max_bytes: int, progress: Any):
        self.file, self.stream, self.max_bytes, self.progress = file, stream, max_bytes, progress
        self.digest = hashlib.sha256()
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.ended = "", 0, False  # what was read, the place in it, whether it is all
        self.bytes_read = 0
        self.byte = 0  # of the file, at the place
        self.line, self.column = 1, 1  # of the file, where text begins

    def elements(self, key: str | None) -> Iterator[tuple[int, int, Any]]:
        """First byte, byte after the last, and value of each element of the list."""
        if key is not None:
            self._expect("{", f"an object with a list under {key!r}")
            while (name := self._value()) != key:
                if not isinstance(name, str):
                    raise self._broken("Expecting a key")
                self._member()
                if self._peek() == "}":
                    raise ValueError(f"{self.file}: key {key}: expected a list of samples, but there is no such key")
                self._expect(",")
            self._expect(":")
        self._expect("[", "a list of samples")
        if self._peek() != "]":
            yield self._element()
            while (found := self._peek()) == ",":
                self._advance(self.at + 1)
                yield self._element()
            if found not in ("]", ""):
                raise self._broken("Expecting ',' or ']'")
        self._expect("]")
        if key is not None:
            while self._peek() == ",":
                self._advance(self.at + 1)
                self._value()
                self._member()
            self._expect("}")
        self._end()

    def lines(self) -> Iterator[tuple[int, int, Any]]:
        """The same for each line that is not blank."""
        # Not by splitlines(): JSON strings may hold U+2028 and other characters that it would break at.
        while line := self.stream.readline(self.max_bytes + 2):
            if len(line.rstrip(b"\n")) > self.max_bytes:
                raise self._too_large()
            begin = self.bytes_read
            self.text, self.at, self.ended = self._decode(line, final=True).rstrip("\n"), 0, True
            if self._peek():
                record = self._value()
                self._end()
                yield begin, self.bytes_read, record
            self.line += 1

    def whole(self) -> Any:
        """The one value of the file."""
        value = self._value()
        self._end()
        return value

    def _element(self) -> tuple[int, int, Any]:
        self._peek()
        begin = self.byte
        value = self._value()
        return begin, self.byte, value

    def _member(self) -> None:
        self._expect(":")
        self._value()

    def _value(self) -> Any:
        """Decode the value at the place, reading on until it is whole."""
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _LONGEST_TOKEN
                if self.ended or not unfinished:
                    raise self._broken(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._broken("nested too deeply") from error
            except ValueError as error:  # a number of thousands of digits
                raise self._broken(str(error)) from error
            else:
                number = _NUMBER.match(self.text, end)
                assert number is not None
                if number.end() < len(self.text) or self.ended:  # otherwise a number may go on: 0, 0., 0.5
                    begin = self.byte
                    self._advance(end)
                    if self.byte - begin > self.max_bytes:
                        raise self._too_large()
                    return value
            if len(self.text) - self.at > self.max_bytes:
                raise self._too_large()
            self._more()

    def _peek(self) -> str:
        """The next character that is not white space, or "" at the end of the file."""
        while True:
            if self.at == len(self.text):
                if self.ended:
                    return ""
                self._more()
            elif self.byte == 0 and self.text[self.at] == "\ufeff":  # a byte order mark
                self._advance(self.at + 1)
            elif (character := self.text[self.at]) in " \t\n\r":
                space = _WHITESPACE.match(self.text, self.at)
                assert space is not None
                self._advance(space.end())
            else:
                return character

    def _expect(self, character: str, meaning: str | None = None) -> None:
        found = self._peek()
        if found != character:
            if meaning is not None and found:
                raise ValueError(f"{self.file}: expected {meaning}, but it begins with {found!r}")
            raise self._broken(f"Expecting {character!r}" if found else "the file ends too early")
        self._advance(self.at + 1)

    def _end(self) -> None:
        if self._peek():
            raise self._broken("Extra data")

    def _advance(self, at: int) -> None:
        # Encoding what was passed is exact, and not needed for plain ASCII.
        self.byte += at - self.at if self.text.isascii() else len(self.text[self.at : at].encode())
        self.at = at

    def _more(self) -> None:
        """Let go of what lies behind and read on: at least as much as is held, so a large record is tried few times."""
        behind = self.text[: self.at]
        if newlines := behind.count("\n"):
            self.line += newlines
            self.column = len(behind) - behind.rindex("\n")
        else:
            self.column += len(behind)
        rest = self.text[self.at :]
        data = self.stream.read(max(CHUNK_BYTES, len(rest)))
        self.text, self.at, self.ended = rest + self._decode(data, final=not data), 0, not data

    def _decode(self, data: bytes, final: bool) -> str:
        if self.progress is not None:
            self.progress.update(len(data))
        self.digest.update(data)
        try:
            text = self.decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file}: not UTF-8 text ({error.reason} after byte {self.bytes_read})") from error
        self.bytes_read += len(data)
        return text

    def _too_large(self) -> ValueError:
        mib = self.max_bytes / 2**20
        return ValueError(f"{self.file}: line {self._line_at(self.at)}: a record of more than {mib:g} MiB")

    def _broken(self, message: str, at: int | None = None) -> ValueError:
        at = self.at if at is None else at
        newline = self.text.rfind("\n", 0, at)
        column = self.column + at if newline < 0 else at - newline
        return ValueError(f"{self.file}: line {self._line_at(at)} column {column}: broken JSON: {message}")

    def _line_at(self, at: int) -> int:
        return self.line + self.text.count("\n", 0, at)
