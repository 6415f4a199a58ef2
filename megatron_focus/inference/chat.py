"""A conversation in the terminal."""

import sys
from collections.abc import Callable, Iterable

from PIL import Image

from megatron_focus.inference.answering import Answer
from megatron_focus.inference.chat_commands import HELP
from megatron_focus.inference.conversation import Turn
from megatron_focus.inference.image_source import open_picture

Ask = Callable[[list[Turn]], Answer]
"""Answers the last of some turns, writing the answer while it comes; raises ValueError where it cannot."""


class Chat:
    """What was said, and the pictures for the next question."""

    def __init__(self, ask: Ask, pictures: list[Image.Image]):
        self.ask = ask
        self.turns: list[Turn] = []
        self.waiting = pictures

    def take(self, line: str) -> bool:
        """One line of the user's: a command or a question; False for the end."""
        command, _, argument = line.strip().partition(" ")
        if command == "/quit":
            return False
        if command == "/help":
            print(HELP)
        elif command == "/reset":
            self.turns, self.waiting = [], []
            print("forgot the conversation")
        elif command == "/image":
            self._show(argument.strip())
        elif command.startswith("/"):
            print(f"error: no command {command}; /help lists them", file=sys.stderr)
        elif command:
            self._ask(line.strip())
        return True

    def _show(self, source: str) -> None:
        """Keep a picture for the next question."""
        if not source:
            print("error: /image needs a path or an address", file=sys.stderr)
            return
        try:
            picture = open_picture(source)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return
        self.waiting.append(picture)
        print(f"{source}: {picture.width} x {picture.height} pixels, goes with the next question")

    def _ask(self, question: str) -> None:
        """Put a question; what is not answered is not remembered."""
        asked = [*self.turns, Turn("user", question, tuple(self.waiting))]
        try:
            answer = self.ask(asked)
        except KeyboardInterrupt:
            print("\n(stopped; the question is forgotten)")
            return
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return
        self.turns, self.waiting = [*asked, Turn("assistant", answer.text)], []


def talk(chat: Chat, lines: Iterable[str]) -> None:
    """Take lines until they end or one says so."""
    for line in lines:
        if not chat.take(line):
            return


def typed_lines() -> Iterable[str]:
    """Lines from the standard input, with a prompt where it is a terminal."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print()
        except EOFError:
            return
