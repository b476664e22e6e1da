"""How long the sentences of a page are: `python docs/scripts/sentences.py README.md docs/*.md`.

Prose counts: paragraphs and list items. Headings, tables, pictures and code blocks do not. A sentence ends
with `.`, `!` or `?`, or with its paragraph or list item. A word is what stands between blanks and has a
letter or a digit, so inline code without a blank is one word.
"""

import re
import statistics
import sys
from pathlib import Path

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_NO_PROSE = ("#", "|", "<", "![", "    ")
_ITEM = re.compile(r"^\s*([-*]|\d+\.) ")
_END = re.compile(r"(?<=[.!?])[)`*\"]*\s+")


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs and list items of a Markdown page, each on one line."""
    paragraphs = [""]
    for line in _FENCE.sub("\n", text).splitlines():
        item = _ITEM.match(line)
        if not line.strip() or (line.startswith(_NO_PROSE) and not item):
            paragraphs.append("")
        elif item:
            paragraphs.append(line[item.end() :].strip())
        else:
            paragraphs[-1] = f"{paragraphs[-1]} {line.strip()}".strip()
    return [_LINK.sub(r"\1", paragraph) for paragraph in paragraphs if paragraph]


def sentences_of(text: str) -> list[str]:
    """The sentences of a Markdown page's prose that have a word."""
    parts = [part for paragraph in paragraphs_of(text) for part in _END.split(paragraph)]
    return [part for part in parts if words_of(part)]


def words_of(sentence: str) -> list[str]:
    """The words of a sentence."""
    return [word for word in sentence.split() if any(letter.isalnum() for letter in word)]


def mean_words(text: str) -> float:
    """Words per sentence in the mean."""
    return statistics.mean(len(words_of(sentence)) for sentence in sentences_of(text))


def main(paths: list[str]) -> None:
    """Print the mean and the longest sentence of each page."""
    for path in paths:
        text = Path(path).read_text()
        sentences = sentences_of(text)
        if not sentences:  # a page of tables
            continue
        longest = max(sentences, key=lambda sentence: len(words_of(sentence)))
        mean = mean_words(text)
        print(f"{path}: {mean:.1f} words in each of {len(sentences)} sentences; longest: {longest}")


if __name__ == "__main__":
    main(sys.argv[1:])
